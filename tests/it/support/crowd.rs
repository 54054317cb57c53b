//! Many applications at once, which send little or nothing and take what comes.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::sidecar::{Ports, Running};
use super::{PATIENCE, wait_until};

/// Where the crowd comes from: a loopback address of its own, so that it uses up nobody else's ports.
const ORIGIN: ([u8; 4], u16) = ([127, 0, 50, 1], 0);
/// The kernel queues more connections than this until they are accepted.
const AT_ONCE: usize = 512;

/// The connections.
pub struct Crowd(Vec<TcpStream>);

impl Crowd {
    /// So many connections, all of them accepted.
    pub fn accepted_by(sidecar: &Ports, number: usize) -> Self {
        let mut crowd = Self(Vec::with_capacity(number));
        while crowd.0.len() < number {
            let next = AT_ONCE.min(number - crowd.0.len());
            crowd.join(sidecar, next);
            let present = crowd.0.len() as f64;
            wait_until("connections", || {
                sidecar.metric("bearerd_connections_open") >= present
            });
        }
        crowd
    }

    /// So many connections, whatever becomes of them.
    pub fn at(sidecar: &Ports, number: usize) -> Self {
        let mut crowd = Self(Vec::with_capacity(number));
        crowd.join(sidecar, number);
        crowd
    }

    fn join(&mut self, sidecar: &Ports, number: usize) {
        self.0.extend((0..number).map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from(ORIGIN).into()).unwrap();
            // Its port is free again as soon as it leaves, for the next crowd.
            socket.set_linger(Some(Duration::ZERO)).unwrap();
            socket.connect(&sidecar.proxy.into()).unwrap();
            let stream = TcpStream::from(socket);
            stream.set_nonblocking(true).unwrap();
            stream
        }));
    }

    /// Every one in so many of it sends `bytes`; those that cannot do not.
    pub fn send(&self, one_in: usize, bytes: impl AsRef<[u8]>) {
        for mut member in self.0.iter().step_by(one_in) {
            let _ = member.write(bytes.as_ref());
        }
    }

    /// What has come to each member that has got something, and has not told of it yet.
    pub fn answers(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let answers = self.0.iter().filter_map(|mut member| {
            let length = member.read(&mut buffer).ok().filter(|length| *length > 0)?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        });
        answers.collect()
    }

    /// Waits until every connection has ended, without an answer.
    pub fn is_closed(&self) -> bool {
        self.0.iter().all(|mut member| {
            member.set_nonblocking(false).unwrap();
            member.set_read_timeout(Some(PATIENCE)).unwrap();
            match member.read(&mut [0]) {
                Ok(length) => length == 0,
                Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
            }
        })
    }
}

/// `wanted`, or as many connections as there are file descriptors for, here and at the sidecar.
pub fn that_fit(sidecar: &Running, wanted: usize) -> usize {
    let limit = |limits: &str| -> usize {
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let soft = line.unwrap().split_whitespace().nth(3).unwrap();
        soft.parse().unwrap_or(usize::MAX)
    };
    let own = limit(&std::fs::read_to_string("/proc/self/limits").unwrap());
    let its = limit(&sidecar.process.proc("limits"));
    // Others need some too: here the tests that run at the same time, there everything but the crowd.
    let fit = own.min(its).saturating_sub(1500);
    if fit < wanted {
        println!(
            "{fit} connections instead of {wanted}: the limits of open files are {own} and {its}"
        );
    }
    fit.min(wanted)
}
