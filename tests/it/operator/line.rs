//! A faulty connection to the broker: it stalls, or breaks once, after a number of bytes from the client.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

pub(crate) struct Line {
    pub(crate) port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    broker: u16,
    /// Bytes until the fault; `usize::MAX` after it.
    left: AtomicUsize,
    breaks: AtomicBool,
    stalled: AtomicBool,
    connections: AtomicUsize,
}

impl Line {
    /// A connection without faults, until one is set.
    pub(crate) fn to(broker: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a loopback port");
        let port = listener.local_addr().expect("the port that was bound").port();
        let shared = Arc::new(Shared {
            broker,
            left: AtomicUsize::new(usize::MAX),
            breaks: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&shared);
        // The thread ends with the process of the test.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&accepting);
                shared.connections.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || shared.carry(client));
            }
        });
        Self { port, shared }
    }

    pub(crate) fn stalls_after(self, bytes: usize) -> Self {
        self.shared.left.store(bytes, Ordering::SeqCst);
        self
    }

    pub(crate) fn breaks_after(self, bytes: usize) -> Self {
        self.shared.breaks.store(true, Ordering::SeqCst);
        self.stalls_after(bytes)
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.shared.stalled.load(Ordering::SeqCst)
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn carry(&self, mut client: TcpStream) {
        let Ok(mut broker) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.broker)) else { return };
        let (mut back_from, mut back_to) =
            (broker.try_clone().expect("clone a socket"), client.try_clone().expect("clone a socket"));
        thread::spawn(move || {
            let _ = std::io::copy(&mut back_from, &mut back_to);
            let _ = back_to.shutdown(Shutdown::Both);
        });
        let mut bytes = [0; 512];
        while let Ok(count @ 1..) = client.read(&mut bytes) {
            if broker.write_all(&bytes[..count]).is_err() {
                break;
            }
            let left = self.left.load(Ordering::SeqCst);
            if left == usize::MAX {
                continue;
            }
            self.left.store(left.saturating_sub(count), Ordering::SeqCst);
            if left > count {
                continue;
            }
            if self.breaks.load(Ordering::SeqCst) {
                self.left.store(usize::MAX, Ordering::SeqCst);
                break;
            }
            self.stalled.store(true, Ordering::SeqCst);
            // Stops reading: the client waits until it is killed.
            while client.peer_addr().is_ok() && self.stalled.load(Ordering::SeqCst) {
                thread::park();
            }
        }
        let _ = client.shutdown(Shutdown::Both);
        let _ = broker.shutdown(Shutdown::Both);
    }
}
