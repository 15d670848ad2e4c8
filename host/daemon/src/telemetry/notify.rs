//! Notifications to systemd: `sd_notify(3)` over a datagram socket, in the file system or abstract. No-op elsewhere.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Connection to the service manager. Child processes must be spawned without `NOTIFY_SOCKET`.
#[derive(Debug)]
pub(crate) struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notifier {
    pub(crate) fn from_env() -> Self {
        Self::new(|key| std::env::var_os(key), std::process::id())
    }

    fn new(env: impl Fn(&str) -> Option<OsString>, pid: u32) -> Self {
        let socket = env("NOTIFY_SOCKET").and_then(|path| match connect(&path) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "failed to connect to the service manager");
                None
            }
        });
        let number = |key| env(key).and_then(|value| value.to_str()?.parse::<u64>().ok());
        // With the pid of another process the variable was inherited by accident.
        let ours = number("WATCHDOG_PID").is_none_or(|wanted| wanted == u64::from(pid));
        let watchdog = number("WATCHDOG_USEC").filter(|us| *us > 0 && ours).map(Duration::from_micros);
        Self { watchdog: watchdog.filter(|_| socket.is_some()), socket }
    }

    /// Interval between calls of [`Self::watchdog`]: half of what the service manager tolerates. `None`: no watchdog.
    pub(crate) fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// Reports the end of start-up: the unit is active.
    pub(crate) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// Sets the line that `systemctl status` shows.
    pub(crate) fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", one_line(status)));
    }

    /// Feeds the watchdog. Only the message loop calls this: its liveness is what the watchdog observes.
    pub(crate) fn watchdog(&self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    /// Reports the start of a reload; [`Self::reloaded`] must follow.
    pub(crate) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let us = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={us}"));
    }

    /// Reports the end of a reload.
    pub(crate) fn reloaded(&self) {
        self.send("READY=1");
    }

    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=draining");
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            tracing::debug!(%error, "failed to notify the service manager");
        }
    }
}

fn connect(path: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match path.as_bytes().split_first() {
        Some((b'@', name)) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        Some((b'/', _)) => socket.connect(path)?,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a path nor an abstract name")),
    }
    // A service manager that does not read must not block the message loop.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Status without line breaks, which would begin another assignment.
fn one_line(status: &str) -> String {
    status.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UnixDatagram) -> String {
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut buffer = [0; 512];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    fn env(pairs: &[(&'static str, OsString)]) -> impl Fn(&str) -> Option<OsString> {
        |key| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone())
    }

    #[test]
    fn a_path_socket_receives_every_notification() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let pairs = [
            ("NOTIFY_SOCKET", path.into_os_string()),
            ("WATCHDOG_USEC", "30000000".into()),
            ("WATCHDOG_PID", "42".into()),
        ];
        let notifier = Notifier::new(env(&pairs), 42);
        assert_eq!(notifier.watchdog_interval(), Some(Duration::from_secs(15)));
        notifier.ready("3 functions\nEXTRA=1");
        assert_eq!(receive(&socket), "READY=1\nSTATUS=3 functions EXTRA=1");
        notifier.watchdog();
        assert_eq!(receive(&socket), "WATCHDOG=1");
        notifier.reloading();
        assert!(receive(&socket).starts_with("RELOADING=1\nMONOTONIC_USEC="));
        notifier.reloaded();
        assert_eq!(receive(&socket), "READY=1");
        notifier.stopping();
        assert_eq!(receive(&socket), "STOPPING=1\nSTATUS=draining");
    }

    #[test]
    fn an_abstract_socket_receives_notifications() {
        let name = format!("sedge-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let notifier = Notifier::new(env(&[("NOTIFY_SOCKET", format!("@{name}").into())]), 42);
        notifier.status("busy");
        assert_eq!(receive(&socket), "STATUS=busy");
        assert_eq!(notifier.watchdog_interval(), None);
    }

    #[test]
    fn the_watchdog_of_another_process_is_not_fed() {
        let name = format!("sedge-test-other-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let pairs = [
            ("NOTIFY_SOCKET", format!("@{name}").into()),
            ("WATCHDOG_USEC", "30000000".into()),
            ("WATCHDOG_PID", "41".into()),
        ];
        let notifier = Notifier::new(env(&pairs), 42);
        assert_eq!(notifier.watchdog_interval(), None);
        notifier.watchdog();
        notifier.status("first");
        assert_eq!(receive(&socket), "STATUS=first");
    }

    #[test]
    fn without_a_service_manager_nothing_happens() {
        let notifier = Notifier::new(|_| None, 42);
        notifier.ready("");
        notifier.watchdog();
        assert_eq!(notifier.watchdog_interval(), None);
    }
}
