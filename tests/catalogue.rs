//! Each row of `tests/catalogue.md` has a test that names it, or a reason why not.
//!
//! `cargo test --test catalogue -- --nocapture` prints all rows: where they are covered, or why they are left out.
//!
//! A test names a row in its doc comment or at the beginning of a string, as tables do; `A-042…A-046` names five. What
//! code outside of tests says counts for nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Of the rows about requests, answers, misuse and faults; those about tokens have tests beside.
const MIN_COVERED: usize = 150;

/// A row of the list.
struct Row {
    id: String,
    status: Status,
}

#[derive(Debug, PartialEq)]
enum Status {
    /// It needs a test.
    Due,
    /// There is no test, for this reason.
    LeftOut(String),
    /// A test is to come.
    Open,
    /// Tests are to come for its whole section.
    Later,
}

/// Reads the list, and asserts that it can be read whole.
fn rows(list: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut later = false;
    for line in list.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            later = heading.ends_with(" (later)");
        } else if let Some(row) = line.strip_prefix("- ") {
            let (id, what) = row.split_once(' ').expect("an id and what it is about");
            assert_eq!(ids(id), [id], "an id: {line}");
            assert!(!what.is_empty(), "{line}");
            let status = if later { Status::Later } else { Status::Due };
            rows.push(Row {
                id: id.to_owned(),
                status,
            });
        } else if let Some(status) = line.strip_prefix("  - ") {
            let row = rows.last_mut().expect("a row before its status");
            assert_eq!(row.status, Status::Due, "one status for {}", row.id);
            row.status = match status.split_once("left out: ") {
                Some(("", reason)) => Status::LeftOut(reason.to_owned()),
                _ if status == "open" => Status::Open,
                _ => panic!("{}: no status: {status}", row.id),
            };
        } else if let Some(more) = line.strip_prefix("    ")
            && let Some(Status::LeftOut(reason)) = rows.last_mut().map(|row| &mut row.status)
        {
            reason.push(' ');
            reason.push_str(more);
        }
    }
    let unique: BTreeSet<_> = rows.iter().map(|row| &row.id).collect();
    assert_eq!(unique.len(), rows.len(), "an id stands twice");
    rows
}

fn catalogue() -> Vec<Row> {
    rows(include_str!("catalogue.md"))
}

/// The ids in a text: a letter, a hyphen and two or three digits, as a word.
fn ids(text: &str) -> Vec<&str> {
    let is_in_a_word = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    text.split(|c: char| !is_in_a_word(c))
        .filter(|word| {
            word.split_once('-').is_some_and(|(letter, digits)| {
                matches!(letter, "A" | "C" | "D" | "E" | "F" | "H")
                    && matches!(digits.len(), 2 | 3)
                    && digits.bytes().all(|byte| byte.is_ascii_digit())
            })
        })
        .collect()
}

/// The part of a line of Rust that can name rows: a doc comment, or what strings begin with.
fn naming_parts(line: &str) -> Vec<&str> {
    let line = line.trim_start();
    if let Some(comment) = line.strip_prefix("///") {
        return vec![comment];
    }
    if line.starts_with("//") {
        return Vec::new();
    }
    beginnings_of_strings(line)
}

/// The same of a line of Python.
fn naming_parts_of_python(line: &str) -> Vec<&str> {
    let mut parts = beginnings_of_strings(line);
    parts.extend(line.split_once('#').map(|(_, comment)| comment));
    parts
}

/// `A-022 D-65` of `("A-022 D-65", "…")`.
fn beginnings_of_strings(line: &str) -> Vec<&str> {
    let beginning = |string: &'_ str| {
        let is_of_ids = |c: char| c.is_ascii_digit() || "ACDEFH-, …".contains(c);
        string.find(|c: char| !is_of_ids(c)).unwrap_or(string.len())
    };
    line.split('"')
        .skip(1)
        .map(|string| &string[..beginning(string)])
        .collect()
}

/// The rows that a text names, its ranges written out.
fn named(text: &str, rows: &[Row]) -> Vec<String> {
    let mut names: Vec<String> = ids(text).into_iter().map(str::to_owned).collect();
    for (before, after) in text.split('…').zip(text.split('…').skip(1)) {
        let (Some(first), Some(last)) = (ids(before).pop(), ids(after).first().copied()) else {
            continue;
        };
        if before.ends_with(first) && after.starts_with(last) {
            let within = |id: &str| id[..1] == first[..1] && (first..=last).contains(&id);
            let ids = rows.iter().map(|row| row.id.as_str());
            names.extend(ids.filter(|id| within(id)).map(str::to_owned));
        }
    }
    names
}

/// What tests there are, by file: each line that is of a test.
fn tests() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeMap::new();
    let mut folders = vec![root.join("src"), root.join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                // What is built or installed there is not ours.
                if !name.starts_with('.') && name != "target" && name != "venv" {
                    folders.push(path);
                }
                continue;
            }
            if !name.ends_with(".rs") && !name.ends_with(".py") {
                continue;
            }
            let shown = path.strip_prefix(root).unwrap().display().to_string();
            let text = fs::read_to_string(&path).unwrap();
            let text = match text.split_once("\n#[cfg(test)]\n") {
                _ if shown == "tests/catalogue.rs" => continue,
                _ if shown.starts_with("tests/") || name.ends_with("tests.rs") => text,
                Some((_, tests)) => tests.to_owned(),
                None => continue,
            };
            tests.insert(shown, text);
        }
    }
    assert!(tests.len() > 20, "the tests were found");
    tests
}

/// The files whose tests name a row, for each id that is named.
fn coverage(rows: &[Row]) -> BTreeMap<String, BTreeSet<String>> {
    let mut coverage: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in tests() {
        for line in text.lines() {
            let parts = if file.ends_with(".py") {
                naming_parts_of_python(line)
            } else {
                naming_parts(line)
            };
            for id in parts.into_iter().flat_map(|part| named(part, rows)) {
                coverage.entry(id).or_default().insert(file.clone());
            }
        }
    }
    coverage
}

/// Whether a row counts towards [`MIN_COVERED`].
fn is_counted(id: &str) -> bool {
    match id.as_bytes()[0] {
        b'A' | b'D' | b'H' => true,
        b'E' => id > "E-10",
        _ => false,
    }
}

#[test]
fn each_row_is_covered_or_left_out_for_a_reason() {
    let rows = catalogue();
    let coverage = coverage(&rows);
    let mut wrong = Vec::new();
    let mut counted = 0;
    for Row { id, status } in &rows {
        let files = coverage.get(id).map(|files| {
            let files: Vec<_> = files.iter().map(String::as_str).collect();
            files.join(", ")
        });
        counted += usize::from(files.is_some() && is_counted(id));
        let shown = match (&files, status) {
            (Some(files), Status::LeftOut(_)) => {
                wrong.push(format!("{id} is left out, and covered by {files}"));
                continue;
            }
            (Some(files), Status::Open) => {
                wrong.push(format!("{id} is open, and covered by {files}"));
                continue;
            }
            (None, Status::Due) => {
                wrong.push(format!("{id} is neither covered nor left out"));
                continue;
            }
            (Some(files), _) => format!("covered   {files}"),
            (None, Status::LeftOut(reason)) => format!("left out  {reason}"),
            (None, Status::Open) => "open".to_owned(),
            (None, Status::Later) => "later".to_owned(),
        };
        println!("{id:6} {shown}");
    }
    println!("{counted} rows of A, D, E-11 and above, and H are covered");
    if counted < MIN_COVERED {
        wrong.push(format!("{counted} rows are covered, not {MIN_COVERED}"));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn tests_name_rows_that_exist() {
    let rows = catalogue();
    let known: BTreeSet<_> = rows.iter().map(|row| row.id.as_str()).collect();
    let mut unknown = Vec::new();
    for (file, text) in tests() {
        let ids = ids(&text).into_iter().filter(|id| !known.contains(id));
        unknown.extend(ids.map(|id| format!("{id} in {file}")));
    }
    assert!(unknown.is_empty(), "not in the catalogue: {unknown:?}");
}

/// The reading of list and tests itself.
#[test]
fn what_names_a_row_is_known() {
    let rows = rows(
        "## A. One\n- A-001 one\n- A-003 three\n  - left out: since\n    then\n- A-004 four\n  - open\n\
         - A-010 ten\n## C (later)\n- C-02 two\n",
    );
    let statuses: Vec<_> = rows.iter().map(|row| &row.status).collect();
    let left_out = Status::LeftOut("since then".to_owned());
    let expected = [
        &Status::Due,
        &left_out,
        &Status::Open,
        &Status::Due,
        &Status::Later,
    ];
    assert_eq!(statuses, expected);

    let named_by = |line| -> Vec<String> {
        let parts = naming_parts(line).into_iter();
        parts.flat_map(|part| named(part, &rows)).collect()
    };
    assert_eq!(
        named_by("    /// A-001, C-02: and A-9, XA-004"),
        ["A-001", "C-02"]
    );
    assert_eq!(
        named_by("/// A-001…A-004"),
        ["A-001", "A-004", "A-001", "A-003", "A-004"]
    );
    assert_eq!(
        named_by("x(\"A-003 C-02\", \"not A-001\")"),
        ["A-003", "C-02"]
    );
    assert_eq!(named_by("assert!(x, \"A-004: {y}\")"), ["A-004"]);
    for comment in ["// A-001", "//! A-001", "let a = 1; // A-001"] {
        assert!(named_by(comment).is_empty(), "{comment}");
    }
    assert_eq!(
        naming_parts_of_python("@case(\"A-001 a\")  # A-003"),
        ["A-001 ", "", " A-003"]
    );
}
