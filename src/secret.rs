//! Secrets: where they come from, and how they are kept out of sight.
//!
//! A secret is read at the moment it is used, never held: a token request happens about once an hour, so reading a
//! small file costs nothing, and a rotated secret needs no code.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// A value that must not be seen. `Debug` shows nothing of it, and its memory is overwritten when it is dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the value over.
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The value itself. Call it only where the value goes onto the wire.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// Where a secret is read from, each time it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A regular file of at most 64 KiB, UTF-8. Exactly one line ending at its end is not part of the secret.
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

/// A secret larger than this is refused: it is some other file, named by mistake.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

impl SecretSource {
    /// The file, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Env(_) => None,
        }
    }

    /// Reads the secret now.
    ///
    /// Blocks for the time of one small file read; what is not a regular file is refused, so a pipe cannot hang it.
    ///
    /// # Errors
    /// When there is nothing to read, or what is there cannot be a secret. No error holds any of the value.
    pub fn read(&self) -> Result<Secret, SecretError> {
        let text = match self {
            Self::File(path) => read_file(path).map_err(|fault| SecretError {
                place: format!("file {}", path.display()),
                fault,
            })?,
            Self::Env(name) => {
                std::env::var(name)
                    .map(Zeroizing::new)
                    .map_err(|error| SecretError {
                        place: format!("variable {name}"),
                        fault: match error {
                            std::env::VarError::NotPresent => SecretFault::Missing,
                            std::env::VarError::NotUnicode(_) => SecretFault::NotUtf8,
                        },
                    })?
            }
        };
        let value = text.strip_suffix('\n').unwrap_or(&text);
        let value = value.strip_suffix('\r').unwrap_or(value);
        if value.is_empty() {
            return Err(SecretError {
                place: self.to_string(),
                fault: SecretFault::Empty,
            });
        }
        Ok(Secret::new(value.to_owned()))
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "variable {name}"),
        }
    }
}

fn read_file(path: &PathBuf) -> Result<Zeroizing<String>, SecretFault> {
    let metadata = fs::metadata(path).map_err(SecretFault::from)?;
    if !metadata.is_file() {
        return Err(SecretFault::NotAFile);
    }
    let mut text = Zeroizing::new(String::new());
    fs::File::open(path)
        .map_err(SecretFault::from)?
        .take(MAX_SECRET_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(SecretFault::from)?;
    if text.len() as u64 > MAX_SECRET_BYTES {
        return Err(SecretFault::TooLarge);
    }
    Ok(text)
}

/// A secret that could not be read: the place, and what is wrong there.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("secret {place}: {fault}")]
pub struct SecretError {
    place: String,
    fault: SecretFault,
}

impl SecretError {
    /// What is wrong.
    pub fn fault(&self) -> SecretFault {
        self.fault
    }
}

/// What is wrong with the place a secret should be in.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SecretFault {
    #[error("does not exist")]
    Missing,
    #[error("may not be read by this user")]
    Forbidden,
    #[error("is empty")]
    Empty,
    #[error("is not UTF-8 text")]
    NotUtf8,
    #[error("is larger than 64 KiB")]
    TooLarge,
    #[error("is not a regular file")]
    NotAFile,
    #[error("cannot be read ({0})")]
    Io(io::ErrorKind),
}

impl From<io::Error> for SecretFault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            io::ErrorKind::PermissionDenied => Self::Forbidden,
            io::ErrorKind::InvalidData => Self::NotUtf8,
            kind => Self::Io(kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &[u8]) -> Result<String, SecretFault> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        match SecretSource::File(file.path().into()).read() {
            Ok(secret) => Ok(secret.expose().to_owned()),
            Err(error) => Err(error.fault()),
        }
    }

    /// C-67: one line ending is the editor's, a second one is the secret's.
    #[test]
    fn exactly_one_line_ending_is_removed() {
        assert_eq!(read(b"s3cret").unwrap(), "s3cret");
        assert_eq!(read(b"s3cret\n").unwrap(), "s3cret");
        assert_eq!(read(b"s3cret\r\n").unwrap(), "s3cret");
        assert_eq!(read(b"s3cret\n\n").unwrap(), "s3cret\n");
        assert_eq!(read(b" s3cret ").unwrap(), " s3cret ");
    }

    #[test]
    fn what_cannot_be_a_secret_is_refused() {
        assert_eq!(read(b""), Err(SecretFault::Empty));
        assert_eq!(read(b"\n"), Err(SecretFault::Empty));
        assert_eq!(read(&[0xff, 0xfe]), Err(SecretFault::NotUtf8));
        assert_eq!(read(&vec![b'a'; 70_000]), Err(SecretFault::TooLarge));
        let directory = SecretSource::File(std::env::temp_dir()).read();
        assert_eq!(directory.unwrap_err().fault(), SecretFault::NotAFile);
        let missing = SecretSource::File("/nonexistent/secret".into()).read();
        assert_eq!(missing.unwrap_err().fault(), SecretFault::Missing);
        let unset = SecretSource::Env("BEARERD_TEST_UNSET".into()).read();
        assert_eq!(unset.unwrap_err().fault(), SecretFault::Missing);
    }

    #[test]
    fn debug_shows_nothing() {
        let secret = Secret::new("hunter2".into());
        assert!(!format!("{secret:?}").contains("hunter2"));
    }
}
