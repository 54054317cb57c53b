//! `client_auth` of `[credential.NAME]`, and the settings that belong to its methods: those of the one that is chosen, and
//! of no other.

use super::error::{Origin, Problem};
use super::setting::{Problems, choice, missing};
use super::tables::{CredentialTable, List, Setting, Text};
use crate::oauth::client_assertion::{
    AssertionError, PrivateKey, SigningAlgorithm, check_assertion,
};
use crate::oauth::client_auth::{BasicEncoding, ClientAuth, SecretMethod};
use crate::secret::{Secret, SecretFault, SecretSource};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Method {
    #[default]
    SecretBasic,
    SecretPost,
    SecretJwt,
    PrivateKeyJwt,
    AssertionFile,
    Tls,
    SelfSignedTls,
}

const METHODS: [(&str, Method); 7] = [
    ("client_secret_basic", Method::SecretBasic),
    ("client_secret_post", Method::SecretPost),
    ("client_secret_jwt", Method::SecretJwt),
    ("private_key_jwt", Method::PrivateKeyJwt),
    ("client_assertion_file", Method::AssertionFile),
    ("tls_client_auth", Method::Tls),
    ("self_signed_tls_client_auth", Method::SelfSignedTls),
];

const BY_SECRET: &[Method] = &[Method::SecretBasic, Method::SecretPost, Method::SecretJwt];

impl Method {
    fn name(self) -> &'static str {
        let name = METHODS.iter().find(|(_, method)| *method == self);
        name.map_or("", |(name, _)| name)
    }
}

/// Takes the settings of client authentication out of `table`.
pub(super) fn client_auth(
    table: &mut CredentialTable,
    place: &str,
    problems: &mut Problems,
) -> Option<ClientAuth> {
    let told = problems.len();
    let method = choice(table.client_auth.take(), problems, &METHODS);
    if problems.len() > told {
        // Which settings belong to it nobody can say.
        return None;
    }
    let strays = strays(table, method, problems);
    let proof = proof(table, method, place, problems);
    match proof {
        // What is there instead has been told, with what to do about it.
        Err(_) if strays => None,
        Err(problem) => {
            problems.extend(problem);
            None
        }
        Ok(client_auth) => Some(client_auth),
    }
}

/// Tells the settings that belong to other methods; whether there are any.
fn strays(table: &CredentialTable, method: Method, problems: &mut Problems) -> bool {
    fn origin<T>(setting: &Option<Setting<T>>) -> Option<&Origin> {
        setting.as_ref().map(|setting| &setting.origin)
    }
    let settings = [
        (
            "client_secret_file",
            origin(&table.client_secret_file),
            BY_SECRET,
        ),
        (
            "client_secret_env",
            origin(&table.client_secret_env),
            BY_SECRET,
        ),
        (
            "basic_encoding",
            origin(&table.basic_encoding),
            &[Method::SecretBasic],
        ),
        (
            "private_key_file",
            origin(&table.private_key_file),
            &[Method::PrivateKeyJwt],
        ),
        ("key_id", origin(&table.key_id), &[Method::PrivateKeyJwt]),
        (
            "signing_algorithm",
            origin(&table.signing_algorithm),
            &[Method::PrivateKeyJwt],
        ),
        (
            "client_assertion_file",
            origin(&table.client_assertion_file),
            &[Method::AssertionFile],
        ),
    ];
    let mut found = false;
    for (key, origin, methods) in settings {
        let Some(origin) = origin.filter(|_| !methods.contains(&method)) else {
            continue;
        };
        found = true;
        let message = format!("{key} is not for client_auth = {:?}", method.name());
        problems.push(Problem::at(origin, message).hint(format!(
            "one method proves who we are, never two: remove it, or set client_auth = {:?}",
            methods[0].name()
        )));
    }
    found
}

/// Without a problem in the error, it has been told.
fn proof(
    table: &mut CredentialTable,
    method: Method,
    place: &str,
    problems: &mut Problems,
) -> Result<ClientAuth, Option<Problem>> {
    let needed = |key: &str| {
        let message = format!("missing `{key}` in [{place}]");
        let hint = format!("client_auth = {:?} needs it", method.name());
        Some(Problem::new(message).hint(hint))
    };
    let secret_method = match method {
        Method::SecretBasic => SecretMethod::Basic(choice(
            table.basic_encoding.take(),
            problems,
            &[("form", BasicEncoding::Form), ("raw", BasicEncoding::Raw)],
        )),
        Method::SecretPost => SecretMethod::Post,
        Method::SecretJwt => SecretMethod::Jwt,
        Method::PrivateKeyJwt => {
            let file = table.private_key_file.take();
            let file = file.ok_or_else(|| needed("private_key_file"))?;
            let key_id = table.key_id.take();
            let algorithm = table.signing_algorithm.take();
            return private_key(file, key_id, algorithm, problems).ok_or(None);
        }
        Method::AssertionFile => {
            let file = table.client_assertion_file.take();
            let file = file.ok_or_else(|| needed("client_assertion_file"))?;
            return assertion_file(file, problems).ok_or(None);
        }
        Method::Tls => return Ok(ClientAuth::TlsClientAuth),
        Method::SelfSignedTls => return Ok(ClientAuth::SelfSignedTlsClientAuth),
    };
    let (file, env) = (
        table.client_secret_file.take(),
        table.client_secret_env.take(),
    );
    if file.is_none() && env.is_none() {
        let variable = "BEARERD_CLIENT_SECRET_FILE";
        return Err(Some(missing("client_secret_file", place, variable)));
    }
    let secrets = client_secrets(file, env, problems).ok_or(None)?;
    Ok(ClientAuth::Secrets(secret_method, secrets))
}

/// So many secrets are tried after a refusal. More than two or three are no rotation any more.
const MAX_SECRETS: usize = 8;

fn client_secrets(file: List, env: Text, problems: &mut Problems) -> Option<Vec<SecretSource>> {
    let (file, env) = match (file, env) {
        (Some(file), Some(_)) => {
            let message = "client_secret_file together with client_secret_env";
            problems.push(
                Problem::at(&file.origin, message)
                    .hint("keep one of the two; a file can be rotated"),
            );
            return None;
        }
        either => either,
    };
    if let Some(env) = env {
        if !is_variable_name(&env.value) {
            // Not shown: it may be the secret itself.
            let message =
                "client_secret_env is not the name of an environment variable (A-Z, 0-9, _)";
            problems.push(Problem::at(&env.origin, message));
            return None;
        }
        let source = SecretSource::Env(env.value);
        read(&source, &env.origin, problems)?;
        return Some(vec![source]);
    }
    let file = file?;
    let paths = file.value.into_vec();
    if !(1..=MAX_SECRETS).contains(&paths.len()) {
        let message = format!("client_secret_file names 1 to {MAX_SECRETS} files");
        problems.push(Problem::at(&file.origin, message));
        return None;
    }
    // Each of them, although one would do to start: a path that leads nowhere is a mistake.
    let sources: Vec<_> = paths
        .into_iter()
        .map(|path| SecretSource::File(path.into()))
        .collect();
    let readable = sources
        .iter()
        .filter(|source| read(source, &file.origin, problems).is_some());
    (readable.count() == sources.len()).then_some(sources)
}

fn is_variable_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

fn private_key(
    file: Setting<String>,
    key_id: Text,
    algorithm: Text,
    problems: &mut Problems,
) -> Option<ClientAuth> {
    if let Some(key_id) = key_id.as_ref().filter(|key_id| key_id.value.is_empty()) {
        let problem = Problem::at(&key_id.origin, "key_id is empty");
        problems.push(problem.hint("leave it out if the authorization server gave you none"));
    }
    let told = problems.len();
    let algorithm = choice(
        algorithm,
        problems,
        &[
            SigningAlgorithm::Rs256,
            SigningAlgorithm::Ps256,
            SigningAlgorithm::Es256,
            SigningAlgorithm::EdDsa,
        ]
        .map(|algorithm| (algorithm.as_str(), Some(algorithm))),
    );
    if problems.len() > told {
        return None;
    }
    let key = PrivateKey {
        file: SecretSource::File(file.value.into()),
        key_id: key_id.map(|key_id| key_id.value),
        algorithm,
    };
    let pem = read(&key.file, &file.origin, problems)?;
    usable(key.check(&pem), &file.origin, problems)?;
    Some(ClientAuth::PrivateKeyJwt(key))
}

fn assertion_file(file: Setting<String>, problems: &mut Problems) -> Option<ClientAuth> {
    let source = SecretSource::File(file.value.into());
    let assertion = read(&source, &file.origin, problems)?;
    usable(check_assertion(&source, &assertion), &file.origin, problems)?;
    Some(ClientAuth::AssertionFile(source))
}

fn usable(
    checked: Result<(), AssertionError>,
    origin: &Origin,
    problems: &mut Problems,
) -> Option<()> {
    checked
        .map_err(|error| {
            problems.push(Problem::at(origin, error.to_string()).hint(error.hint()));
        })
        .ok()
}

/// A secret that cannot be read now will not be there in a minute either; better told at start than at the first use.
pub(super) fn read(
    source: &SecretSource,
    origin: &Origin,
    problems: &mut Problems,
) -> Option<Secret> {
    source
        .read()
        .map_err(|error| {
            let hint = match error.fault() {
                SecretFault::Forbidden => {
                    "let the user that runs bearerd read it; in Kubernetes set fsGroup: 65532"
                }
                SecretFault::NotAFile => "name a regular file; a pipe cannot be read at each use",
                _ => "put the secret there before bearerd starts",
            };
            problems.push(Problem::at(origin, error.to_string()).hint(hint));
        })
        .ok()
}
