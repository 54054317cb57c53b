//! Two requests put side by side, as in a diff.

use super::scene::{Message, shortened};

/// Columns of the two sides.
pub(super) const LEFT: usize = 34;
pub(super) const RIGHT: usize = 36;

/// One line of two requests put side by side.
pub(super) struct Row {
    pub(super) left: Option<String>,
    pub(super) right: Option<String>,
}

impl Row {
    /// As in a diff: taken away, added, or different.
    pub(super) fn marks(&self) -> (&'static str, &'static str) {
        match (&self.left, &self.right) {
            (Some(left), Some(right)) if left == right => (" ", " "),
            (Some(_), Some(_)) => ("-", "+"),
            (Some(_), None) => ("-", " "),
            (None, _) => (" ", "+"),
        }
    }
}

/// Lines of one name stand beside each other; those that bearerd added come last.
pub(super) fn rows(sent: &Message, received: &Message) -> Vec<Row> {
    let line = |(name, value): &(String, String)| format!("{name}: {}", hidden(name, value));
    let mut added: Vec<&(String, String)> = received.header_lines.iter().collect();
    let mut rows = vec![Row {
        left: Some(sent.request_line.clone()),
        right: Some(received.request_line.clone()),
    }];
    for own in &sent.header_lines {
        let same = added.iter().position(|other| other.0 == own.0);
        rows.push(Row {
            left: Some(format!("{}: {}", own.0, own.1)),
            right: same.map(|index| line(added.remove(index))),
        });
    }
    rows.extend(added.into_iter().map(|other| Row {
        left: None,
        right: Some(line(other)),
    }));
    rows
}

/// A token that a terminal keeps in its history could still be used.
fn hidden(name: &str, value: &str) -> String {
    match value.split_once(' ') {
        Some((scheme, token)) if name == "authorization" => {
            format!("{scheme} {}", shortened(token))
        }
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(lines: &[(&str, &str)]) -> Message {
        Message {
            request_line: "GET / HTTP/1.1".into(),
            header_lines: lines
                .iter()
                .map(|(n, v)| ((*n).into(), (*v).into()))
                .collect(),
        }
    }

    #[test]
    fn requests_stand_side_by_side() {
        let sent = message(&[("host", "a"), ("authorization", "Bearer own"), ("te", "x")]);
        let received = message(&[
            ("via", "1.1 bearerd"),
            ("host", "b"),
            ("authorization", "Bearer 0123456789"),
        ]);
        let shown: Vec<String> = rows(&sent, &received)
            .iter()
            .map(|row| {
                let side = |text: &Option<String>| text.clone().unwrap_or_default();
                let (left, right) = row.marks();
                format!("{left}{}|{right}{}", side(&row.left), side(&row.right))
            })
            .collect();
        assert_eq!(
            shown,
            [
                " GET / HTTP/1.1| GET / HTTP/1.1",
                "-host: a|+host: b",
                "-authorization: Bearer own|+authorization: Bearer 012345…",
                "-te: x| ",
                " |+via: 1.1 bearerd",
            ]
        );
    }
}
