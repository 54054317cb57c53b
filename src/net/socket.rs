//! Listening sockets, TCP or Unix, bound by us or handed over by a service manager.

use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};
use std::time::Duration;

use listenfd::ListenFd;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
#[cfg(target_os = "linux")]
use socket2::{SockFilter, SockRef};
use tokio_util::either::Either;

use super::stream::Stream;

/// Where connections are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    Tcp(SocketAddr),
    /// The path of a Unix stream socket.
    Unix(PathBuf),
}

impl ListenAddress {
    /// The address and port, if it is TCP.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// The directory of its file, if it is a Unix socket.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(path) => path.parent(),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The far end of an accepted connection.
#[derive(Clone, Copy, Debug)]
pub enum Peer {
    Tcp(SocketAddr),
    /// Whoever may open the socket's file.
    Unix,
}

impl Peer {
    /// Whether it is on this machine.
    pub fn is_local(self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix => true,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// A listening socket that any number of workers can accept from, each on a clone.
pub struct ListeningSocket {
    kind: Kind,
    owner: Owner,
}

enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Who decides about the life of a socket.
#[derive(Clone)]
enum Owner {
    /// We do; connections that nobody accepts are lost when it is closed.
    Us,
    /// We do, and of this file, known by its device and inode.
    UsWithFile(PathBuf, (u64, u64)),
    /// The service manager: what we do not accept waits there for our successor.
    Manager,
}

/// Connections that the kernel completes before anybody accepts them.
const BACKLOG: i32 = 1024;

impl ListeningSocket {
    /// Binds and listens. The file of a Unix socket gets `unix_mode`, and replaces one that nobody listens on any more.
    ///
    /// # Errors
    /// Whatever the system says, above all that the address is in use.
    pub fn bind(address: &ListenAddress, unix_mode: u32) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => Ok(Self {
                kind: Kind::Tcp(bind(*address)?),
                owner: Owner::Us,
            }),
            ListenAddress::Unix(path) => bind_unix(path, unix_mode),
        }
    }

    /// The sockets that a service manager passed to this process (`LISTEN_PID`, `LISTEN_FDS`; see sd_listen_fds(3)), in
    /// order. To be called once, before there are threads.
    ///
    /// # Errors
    /// When one of them is not a listening stream socket, TCP or Unix.
    pub fn inherited() -> io::Result<Vec<Self>> {
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..passed.len() {
            let kind = match passed.take_tcp_listener(index) {
                Ok(Some(socket)) => {
                    socket.set_nonblocking(true)?;
                    Kind::Tcp(socket)
                }
                Ok(None) => continue,
                Err(_) => match passed.take_unix_listener(index)? {
                    Some(socket) => {
                        socket.set_nonblocking(true)?;
                        Kind::Unix(socket)
                    }
                    None => continue,
                },
            };
            sockets.push(Self {
                kind,
                owner: Owner::Manager,
            });
        }
        Ok(sockets)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn address(&self) -> io::Result<ListenAddress> {
        match &self.kind {
            Kind::Tcp(socket) => Ok(ListenAddress::Tcp(socket.local_addr()?)),
            Kind::Unix(socket) => {
                let address = socket.local_addr()?;
                // Abstract and unnamed ones have none.
                let path = address.as_pathname().map(Path::to_owned);
                Ok(ListenAddress::Unix(path.unwrap_or_default()))
            }
        }
    }

    /// The same socket once more.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            kind: match &self.kind {
                Kind::Tcp(socket) => Kind::Tcp(socket.try_clone()?),
                Kind::Unix(socket) => Kind::Unix(socket.try_clone()?),
            },
            owner: self.owner.clone(),
        })
    }
}

impl From<TcpListener> for ListeningSocket {
    /// `socket` must not block.
    fn from(socket: TcpListener) -> Self {
        Self {
            kind: Kind::Tcp(socket),
            owner: Owner::Us,
        }
    }
}

/// Binds a TCP socket, and listens.
///
/// # Errors
/// Whatever the system says, above all that the address is in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = reserve(address)?;
    listen(&socket)?;
    Ok(socket.into())
}

/// Binds a TCP socket that does not listen yet: connections are refused, and nobody else gets the port.
///
/// # Errors
/// As [`bind`].
pub fn reserve(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for the connections of its predecessor to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Makes a reserved socket listen.
///
/// # Errors
/// Whatever the system says.
pub fn listen(socket: &Socket) -> io::Result<()> {
    socket.listen(BACKLOG)
}

fn bind_unix(path: &Path, mode: u32) -> io::Result<ListeningSocket> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // Before it listens: until then nobody can connect, whatever the umask made of the file.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    listen(&socket)?;
    let file = fs::symlink_metadata(path)?;
    Ok(ListeningSocket {
        kind: Kind::Unix(socket.into()),
        owner: Owner::UsWithFile(path.to_owned(), (file.dev(), file.ino())),
    })
}

/// Removes the socket that a killed process left behind, and nothing else.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file that is no socket",
            ));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// How long a handshake takes that has begun. The peer is on this machine, or near.
pub(super) const HANDSHAKE: Duration = Duration::from_millis(50);

/// A filter for the packets of a listening socket that drops those that begin a connection and takes all others. The
/// peer asks again, and is refused in the orderly way when the socket is gone. Elsewhere than on Linux there is a moment
/// in which a connection can be lost.
#[cfg(target_os = "linux")]
const DROP_SYN: [SockFilter; 5] = {
    /// Codes of linux/bpf_common.h; the packet begins with the TCP header.
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
};

/// A listening socket in the hands of one worker.
pub(super) struct Acceptor {
    socket: Either<tokio::net::TcpListener, tokio::net::UnixListener>,
    owner: Owner,
}

impl Acceptor {
    /// To be called on the runtime that accepts.
    pub(super) fn new(socket: ListeningSocket) -> io::Result<Self> {
        Ok(Self {
            socket: match socket.kind {
                Kind::Tcp(socket) => Either::Left(tokio::net::TcpListener::from_std(socket)?),
                Kind::Unix(socket) => Either::Right(tokio::net::UnixListener::from_std(socket)?),
            },
            owner: socket.owner,
        })
    }

    /// The next connection. Nothing is lost when this is dropped.
    pub(super) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, Peer)>> {
        match &self.socket {
            Either::Left(socket) => socket.poll_accept(cx).map_ok(|(stream, address)| {
                (Stream::new(Either::Left(stream)), Peer::Tcp(address))
            }),
            Either::Right(socket) => socket
                .poll_accept(cx)
                .map_ok(|(stream, _)| (Stream::new(Either::Right(stream)), Peer::Unix)),
        }
    }

    /// Takes care that no more connections begin, so that none is reset by closing the socket: those that have begun are
    /// complete within [`HANDSHAKE`], and can be accepted. `false` if they are not ours to accept: a successor gets the
    /// socket as it is.
    pub(super) fn shut(&self) -> bool {
        match (&self.owner, &self.socket) {
            (Owner::Manager, _) => false,
            (Owner::UsWithFile(path, identity), _) => {
                // A successor may have put its own in its place.
                let is_ours = fs::symlink_metadata(path)
                    .is_ok_and(|file| (file.dev(), file.ino()) == *identity);
                if is_ours {
                    let _ = fs::remove_file(path);
                }
                true
            }
            #[cfg(target_os = "linux")]
            (Owner::Us, Either::Left(socket)) => {
                let _ = SockRef::from(socket).attach_filter(&DROP_SYN);
                true
            }
            _ => true,
        }
    }
}
