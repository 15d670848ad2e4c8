//! How compiled code gets into a worker: the daemon seals it in a file and passes the file over a socket of its own, in the
//! order of the frames that name the functions. A worker can open nothing, so that it has no code but what it is given.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bytes::Bytes;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::sandboxing;
use crate::sandbox::sealed::{IS_NATIVE, SealedCode};

/// Compiled code as the daemon keeps it for its workers.
#[derive(Clone, Debug)]
pub enum Code {
    Sealed(Arc<SealedCode>),
    /// In the frame itself: where it is interpreted, and where no filter would keep a worker from opening more than that file.
    Plain(Bytes),
}

impl Code {
    /// Whether code is passed as files here.
    pub fn is_passed() -> bool {
        IS_NATIVE && sandboxing::has_filter()
    }
}

impl From<Bytes> for Code {
    fn from(code: Bytes) -> Self {
        if !Self::is_passed() {
            return Self::Plain(code);
        }
        match SealedCode::seal(&code) {
            Ok(sealed) => Self::Sealed(Arc::new(sealed)),
            Err(error) => {
                // The worker will say that it cannot run this.
                tracing::error!(%error, "compiled code could not be sealed for the workers");
                Self::Plain(code)
            }
        }
    }
}

/// Its length and the file. Does not wait: where the socket, or the user, has too many files under way already, it says so.
pub fn send(socket: &UnixStream, code: &SealedCode) -> rustix::io::Result<()> {
    let files = [code.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&files));
    let len = (code.len() as u64).to_le_bytes();
    sendmsg(socket, &[IoSlice::new(&len)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// Waits for it.
pub fn receive(socket: &UnixStream) -> io::Result<SealedCode> {
    let mut len = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut len)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    match (file, usize::try_from(u64::from_le_bytes(len))) {
        (Some(file), Ok(len)) if received.bytes == 8 && !received.flags.contains(ReturnFlags::CTRUNC) => {
            Ok(SealedCode::received(file, len))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no compiled code came with its frame")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn files_arrive_in_order_with_their_lengths() {
        let (near, far) = UnixStream::pair().unwrap();
        for code in [b"one".as_slice(), b"three"] {
            send(&near, &SealedCode::seal(code).unwrap()).unwrap();
        }
        for code in [b"one".as_slice(), b"three"] {
            let received = receive(&far).unwrap();
            assert_eq!(received.len(), code.len());
            let mut bytes = vec![0; code.len()];
            File::from(received.as_fd().try_clone_to_owned().unwrap()).read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(bytes, code);
        }
        drop(near);
        assert!(receive(&far).is_err(), "the daemon is gone");
        assert_eq!((&far).read(&mut [0]).unwrap(), 0);
    }
}
