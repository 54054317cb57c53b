//! Fields that are almost those of a request or a response.

use proptest::collection::vec;
use proptest::prelude::*;

use super::requests::{CODINGS, LENGTHS, NAMES, VALUES, options};
use super::{almost, cases, invariants, word};

fn field_lines() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        3 => (word(NAMES, "[!-~]{1,6}"), word(VALUES, "[ -~]{0,8}")).prop_map(|(name, value)| format!("{name}:{value}\n")),
        3 => options().prop_map(|options| format!("connection:{options}\n")),
        2 => word(CODINGS, "[a-z, ]{0,9}").prop_map(|coding| format!("transfer-encoding:{coding}\n")),
        1 => word(LENGTHS, "0{1,3}").prop_map(|length| format!("content-length:{length}\n")),
        1 => (60..70_usize).prop_map(|number| format!("connection:{}\n", "a,".repeat(number))),
    ];
    vec(line, 0..8).prop_map(|lines| lines.concat())
}

proptest! {
    #![proptest_config(cases(4096))]

    /// A-036… …A-097, D-20…D-24: what `Connection` names, what belongs to a hop and what is not
    /// the application's to say goes; all else stays as it was.
    #[test]
    fn end_to_end_fields_and_no_others_cross(lines in almost(field_lines())) {
        invariants::hop(&lines.0);
    }
}
