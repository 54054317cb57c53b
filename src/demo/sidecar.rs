//! The bearerd of the demo: configured as a user would with flags, and run on threads of its own.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::app::{App, Outcome, RunError, Stop};
use crate::config::{Config, Flags, Inputs};
use crate::runtime;

/// Where bearerd listens unless told otherwise, which makes the lines to paste look like real life.
const PROXY: &str = "127.0.0.1:8080";
const ADMIN: &str = "127.0.0.1:9090";
/// Any port that is free.
const ANY: &str = "127.0.0.1:0";
/// How long it may take to end; its own deadline for the drain is shorter.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// What bearerd is told.
pub(super) struct Settings {
    pub(super) upstream_url: String,
    pub(super) token_url: String,
    pub(super) client_id: String,
    pub(super) client_secret: String,
    pub(super) scope: String,
}

/// A bearerd that runs.
pub(super) struct Sidecar {
    pub(super) proxy: SocketAddr,
    pub(super) admin: SocketAddr,
    /// What was not as usual.
    pub(super) notices: Vec<String>,
    stops: mpsc::Sender<Stop>,
    ended: oneshot::Receiver<Result<Outcome, String>>,
    /// Read at each token request, so it lasts as long as bearerd.
    _client_secret: SecretFile,
}

impl Sidecar {
    /// Binds, on other ports if the usual ones are taken, and starts.
    pub(super) fn start(settings: Settings) -> Result<Self, String> {
        let secret = SecretFile::create(&settings.client_secret).map_err(|error| {
            format!(
                "cannot write the client secret into {}: {error}",
                std::env::temp_dir().display()
            )
        })?;
        let mut flags = Flags {
            config: None,
            listen: Some(PROXY.to_owned()),
            admin_listen: Some(ADMIN.to_owned()),
            upstream_url: Some(settings.upstream_url),
            token_url: Some(settings.token_url),
            client_id: Some(settings.client_id),
            client_secret_file: Some(secret.0.to_string_lossy().into_owned()),
            scope: Some(settings.scope),
        };
        let (app, notices) = bind(&mut flags)?;
        let addresses = app.addresses();
        let (Some(proxy), Some(admin)) = (addresses.proxy_tcp(), addresses.admin.tcp()) else {
            return Err("bearerd listens nowhere".to_owned());
        };
        let (stops, receiver) = mpsc::channel(2);
        let (sender, ended) = oneshot::channel();
        thread::Builder::new()
            .name("demo-bearerd".to_owned())
            .spawn(move || {
                let ended = match runtime::control(app.run(receiver)) {
                    Ok(Ok(outcome)) => Ok(outcome),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                let _ = sender.send(ended);
            })
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Self {
            proxy,
            admin,
            notices,
            stops,
            ended,
            _client_secret: secret,
        })
    }

    /// Drains it, as Ctrl-C would, and waits for its end. One more interruption cuts the drain short.
    pub(super) async fn stop(
        &mut self,
        interruptions: &mut watch::Receiver<u32>,
    ) -> Result<Outcome, String> {
        let _ = self.stops.try_send(Stop::AtOnce);
        let interrupted = async {
            if interruptions.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let ended = async {
            tokio::select! {
                ended = &mut self.ended => ended,
                () = interrupted => {
                    let _ = self.stops.try_send(Stop::AtOnce);
                    (&mut self.ended).await
                }
            }
        };
        match timeout(STOP_TIMEOUT, ended).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(_)) => Err("bearerd panicked".to_owned()),
            Err(_) => Err(format!(
                "bearerd did not end within {} s",
                STOP_TIMEOUT.as_secs()
            )),
        }
    }
}

/// The environment is left out: what is set there is meant for another bearerd.
fn bind(flags: &mut Flags) -> Result<(App, Vec<String>), String> {
    let mut notices = Vec::new();
    loop {
        let inputs = Inputs::new(flags.clone(), std::iter::empty());
        let config = Config::load(&inputs).map_err(|error| error.to_string())?;
        let error = match App::bind(config) {
            Ok(app) => return Ok((app, notices)),
            Err(error) => error,
        };
        let (taken, notice) = match &error {
            RunError::Bind { address, source } if source.kind() == io::ErrorKind::AddrInUse => (
                address.to_string(),
                format!("{address} is taken; bearerd listens on a free port instead"),
            ),
            _ => return Err(error.to_string()),
        };
        let settings = [&mut flags.listen, &mut flags.admin_listen];
        let Some(setting) = settings
            .into_iter()
            .find(|setting| setting.as_deref() == Some(&taken))
        else {
            return Err(error.to_string());
        };
        *setting = Some(ANY.to_owned());
        notices.push(notice);
    }
}

/// A file that holds a secret, for this user alone, and goes when this is dropped.
struct SecretFile(PathBuf);

impl SecretFile {
    fn create(secret: &str) -> io::Result<Self> {
        let name = format!("bearerd-demo-{:016x}", fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        // A file of that name that is there already, or a link, is not written to.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let secret_file = Self(path);
        file.write_all(secret.as_bytes())?;
        Ok(secret_file)
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_secret_is_for_this_user_alone_and_goes() {
        let file = SecretFile::create("s3cret").unwrap();
        let path = file.0.clone();
        assert_eq!(fs::read_to_string(&path).unwrap(), "s3cret");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        drop(file);
        assert!(!path.exists());
    }
}
