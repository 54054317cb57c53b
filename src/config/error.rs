//! What is wrong with a configuration, where, and what to do about it.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file, at this range of bytes.
    File(Range<usize>),
    /// An environment variable.
    Env(&'static str),
    /// A flag of the command line.
    Flag(&'static str),
}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Problem {
    origin: Option<Origin>,
    message: String,
    hint: Option<String>,
}

impl Problem {
    /// A problem with no place of its own, such as a missing setting.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            origin: None,
            message: message.into(),
            hint: None,
        }
    }

    /// A problem with the setting at `origin`.
    pub fn at(origin: &Origin, message: impl Into<String>) -> Self {
        Self {
            origin: Some(origin.clone()),
            ..Self::new(message)
        }
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Everything that is wrong. `Display` is one paragraph for each problem, with the line and a caret for those in the
/// file. It never shows a value that could be a secret.
pub struct ConfigError {
    file: Option<(PathBuf, String)>,
    problems: Vec<Problem>,
    /// The file could not be read at all, which is not the same as a wrong configuration.
    pub unreadable: bool,
}

impl ConfigError {
    pub(super) fn new(file: Option<(PathBuf, String)>, problems: Vec<Problem>) -> Self {
        Self {
            file,
            problems,
            unreadable: false,
        }
    }

    pub(super) fn unreadable(path: &std::path::Path, error: &std::io::Error) -> Self {
        let problem = Problem::new(format!("{}: cannot be read: {error}", path.display()));
        Self {
            file: None,
            problems: vec![problem],
            unreadable: true,
        }
    }

    /// A document that is no TOML, or has a key or a type that no setting has.
    pub(super) fn malformed(path: PathBuf, text: String, error: &toml::de::Error) -> Self {
        let message = error.message();
        let mut problem = Problem::new(message.to_owned());
        problem.origin = error.span().map(Origin::File);
        if let Some(rest) = message.strip_prefix("unknown field `")
            && let Some((key, known)) = rest.split_once('`')
        {
            let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
            problem.message = format!("unknown key `{key}`");
            problem.hint = Some(unknown_key_hint(key, &known));
        } else if message.contains("invalid type") {
            // serde shows the value it found.
            problem.message = match message.rsplit_once("expected ") {
                Some((_, expected)) => format!("wrong type, expected {expected}"),
                None => "wrong type".to_owned(),
            };
            problem.hint =
                Some("durations and sizes are strings, such as \"30s\" and \"64KiB\"".to_owned());
        }
        Self::new(Some((path, text)), vec![problem])
    }

    fn write_problem(&self, f: &mut fmt::Formatter<'_>, problem: &Problem) -> fmt::Result {
        let message = &problem.message;
        match (&problem.origin, &self.file) {
            (Some(Origin::File(span)), Some((path, text))) => {
                let place = Place::of(text, span);
                writeln!(
                    f,
                    "{}:{}:{}: {message}",
                    path.display(),
                    place.line,
                    place.column
                )?;
                place.write(f)?;
            }
            (Some(Origin::Env(name)), _) => writeln!(f, "{name}: {message}")?,
            (Some(Origin::Flag(name)), _) => writeln!(f, "{name}: {message}")?,
            (_, Some((path, _))) => writeln!(f, "{}: {message}", path.display())?,
            (_, None) => writeln!(f, "{message}")?,
        }
        match &problem.hint {
            Some(hint) => writeln!(f, "  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            self.write_problem(f, problem)?;
        }
        Ok(())
    }
}

/// Without the text of the file.
impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigError")
            .field("problems", &self.problems)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for ConfigError {}

fn unknown_key_hint(key: &str, known: &[&str]) -> String {
    if matches!(key, "client_secret" | "secret" | "password") {
        return "a secret is never written into the file; use client_secret_file or client_secret_env".to_owned();
    }
    match closest(key, known) {
        Some(close) => format!("did you mean `{close}`?"),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// The one of `known` that `word` may be a slip of the hand for.
pub(super) fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), *candidate))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, candidate)| candidate)
}

/// A line of the file with a caret under a part of it.
struct Place {
    line: usize,
    column: usize,
    text: String,
    carets: usize,
}

impl Place {
    fn of(text: &str, span: &Range<usize>) -> Self {
        let start = text.floor_char_boundary(span.start);
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[line_start..].lines().next().unwrap_or_default();
        let shown = masked(line);
        let offset = text[line_start..start].chars().count();
        let room = shown.chars().count().saturating_sub(offset);
        let wanted = text
            .get(start..span.end)
            .map_or(1, |part| part.chars().count());
        Self {
            line: before.matches('\n').count() + 1,
            column: offset + 1,
            carets: wanted.min(room).max(1),
            text: shown,
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gutter = self.line.to_string().len();
        let indent = self.column - 1;
        writeln!(f, "{:gutter$} |", "")?;
        writeln!(f, "{} | {}", self.line, self.text)?;
        writeln!(
            f,
            "{:gutter$} | {:indent$}{}",
            "",
            "",
            "^".repeat(self.carets)
        )
    }
}

/// A line as it may be shown. Somebody may have put a secret under a name of his own or into a URL, and after a slip of
/// the hand what stands there may be no setting at all; so what is not plainly harmless is not shown.
fn masked(line: &str) -> String {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.\" \t".contains(&byte);
    let Some((key, value)) = line.split_once('=') else {
        // The header of a table, or a piece of something.
        let is_header = line.trim_start().starts_with('[')
            && line
                .bytes()
                .all(|byte| (is_name(byte) && byte != b'"') || b"[]".contains(&byte));
        return if is_header { line } else { "***" }.to_owned();
    };
    if !key.bytes().all(is_name) || key.matches('"').count() > 2 {
        return "***".to_owned();
    }
    let is_suspicious = match key.trim().trim_matches('"') {
        // Where a secret is, and not the secret, unless another setting follows.
        "client_secret_file"
        | "client_key_file"
        | "private_key_file"
        | "client_assertion_file"
        | "client_auth"
        | "token_url" => value.matches(['"', '\'']).count() > 2 || value.contains('='),
        _ => [
            "secret",
            "password",
            "token",
            "key",
            "authorization",
            "assertion",
        ]
        .iter()
        .any(|word| line.to_ascii_lowercase().contains(word)),
    };
    // An inline table has names of the user's own; PEM stands in a file, and not here.
    if is_suspicious || line.contains(['@', '{']) || line.contains("-----BEGIN") {
        format!("{key}= ***")
    } else {
        line.to_owned()
    }
}
