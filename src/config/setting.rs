//! Single settings: text into values, with what is wrong about them collected on the way.

use std::time::Duration;

use bytesize::ByteSize;
use http::Uri;
use url::Url;

use super::error::{Problem, closest};
use super::tables::{Flag, List, Number, Setting, Share, Text};

/// What is wrong, in the order it was found.
pub(super) type Problems = Vec<Problem>;

pub(super) fn missing(key: &str, table: &str, variable: &str) -> Problem {
    Problem::new(format!("missing `{key}` in [{table}]")).hint(format!("add it, or set {variable}"))
}

/// An absolute `http` or `https` URL with a host, without user information and fragment (RFC 6749 §3.2, RFC 9110
/// §4.2.4).
pub(super) fn checked_url(setting: &Setting<String>, problems: &mut Problems) -> Option<Url> {
    let mut problem = |message: String| problems.push(Problem::at(&setting.origin, message));
    let url = match Url::parse(&setting.value) {
        Ok(url) => url,
        Err(error) => {
            problem(format!("not a URL: {error}"));
            return None;
        }
    };
    let before = (
        url.username().is_empty() && url.password().is_none(),
        url.fragment().is_none(),
    );
    match before {
        (false, _) => problem("a URL must not contain user information".to_owned()),
        (_, false) => problem("a URL must not have a fragment here".to_owned()),
        (true, true) if !matches!(url.scheme(), "http" | "https") => {
            problem(format!(
                "unknown scheme {:?}, expected http or https",
                url.scheme()
            ));
        }
        (true, true) if url.host_str().is_none_or(str::is_empty) => {
            problem("a URL needs a host".to_owned())
        }
        (true, true) => return Some(url),
    }
    None
}

/// The URL as it was written: the path goes onto the wire byte for byte.
pub(super) fn as_uri(setting: &Setting<String>, problems: &mut Problems) -> Option<Uri> {
    match setting.value.parse::<Uri>() {
        Ok(uri) if uri.authority().is_some() => Some(uri),
        _ => {
            let message = "not a URL that can be requested";
            problems.push(
                Problem::at(&setting.origin, message).hint("percent-encode what is not ASCII"),
            );
            None
        }
    }
}

pub(super) fn parsed<T>(
    setting: Text,
    problems: &mut Problems,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    let setting = setting?;
    parse(&setting.value)
        .map_err(|message| problems.push(Problem::at(&setting.origin, message)))
        .ok()
}

pub(super) fn duration(setting: Text, default: &str, problems: &mut Problems) -> Duration {
    let origin = setting.as_ref().map(|setting| setting.origin.clone());
    let value = duration_or_zero(setting, default, problems);
    if let Some(origin) = origin.filter(|_| value.is_zero()) {
        problems.push(Problem::at(&origin, "must be longer than 0"));
    }
    value
}

/// So long that no deadline overflows when it is added to a clock.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

pub(super) fn duration_or_zero(setting: Text, default: &str, problems: &mut Problems) -> Duration {
    let parse = |text: &str| match humantime::parse_duration(text) {
        Ok(duration) if duration > MAX_DURATION => Err("longer than a year".to_owned()),
        Ok(duration) => Ok(duration),
        Err(_) => Err(format!(
            "{text:?} is not a duration, such as \"30s\", \"500ms\" or \"1h 30m\""
        )),
    };
    parsed(setting, problems, parse).unwrap_or_else(|| parse(default).unwrap_or_default())
}

pub(super) fn size(setting: Text, default: &str, problems: &mut Problems) -> u64 {
    let parse = |text: &str| {
        let size = text.parse::<ByteSize>();
        size.map(|size| size.as_u64())
            .map_err(|_| format!("{text:?} is not a size, such as \"64KiB\" or \"10MiB\""))
    };
    parsed(setting, problems, parse).unwrap_or_else(|| parse(default).unwrap_or_default())
}

pub(super) fn count(setting: Number, default: usize, problems: &mut Problems) -> usize {
    if let Some(setting) = setting.as_ref().filter(|setting| setting.value == 0) {
        problems.push(Problem::at(&setting.origin, "must be at least 1"));
    }
    count_or_zero(setting, default)
}

/// At most what a semaphore can hold.
pub(super) fn count_or_zero(setting: Number, default: usize) -> usize {
    setting.map_or(default, |setting| {
        usize::try_from(setting.value)
            .unwrap_or(usize::MAX)
            .min(tokio::sync::Semaphore::MAX_PERMITS)
    })
}

pub(super) fn share(setting: Share, default: f64, problems: &mut Problems) -> f64 {
    match setting {
        Some(setting) if !(0.0..=1.0).contains(&setting.value) => {
            problems.push(Problem::at(&setting.origin, "must be from 0.0 to 1.0"));
            default
        }
        Some(setting) => setting.value,
        None => default,
    }
}

pub(super) fn flag(setting: Flag, default: bool) -> bool {
    setting.map_or(default, |setting| setting.value)
}

pub(super) fn list(setting: List) -> Vec<String> {
    setting
        .map(|setting| setting.value.into_vec())
        .unwrap_or_default()
}

/// One of a few words; without a setting the type's default.
pub(super) fn choice<T: Copy + Default>(
    setting: Text,
    problems: &mut Problems,
    choices: &[(&str, T)],
) -> T {
    match setting {
        Some(_) => choice_or(setting, problems, choices),
        None => T::default(),
    }
}

/// One of a few words; without a setting the first.
pub(super) fn choice_or<T: Copy>(
    setting: Text,
    problems: &mut Problems,
    choices: &[(&str, T)],
) -> T {
    let (_, default) = choices[0];
    let Some(setting) = setting else {
        return default;
    };
    match choices.iter().find(|(word, _)| *word == setting.value) {
        Some((_, choice)) => *choice,
        None => {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let problem = Problem::at(
                &setting.origin,
                format!("{:?} is none of {}", setting.value, words.join(", ")),
            );
            problems.push(match closest(&setting.value, &words) {
                Some(close) => problem.hint(format!("did you mean {close:?}?")),
                None => problem,
            });
            default
        }
    }
}
