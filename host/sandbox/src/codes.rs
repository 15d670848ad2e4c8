//! Passes compiled code to workers: as sealed files over a socket of their own, in the order of the `Load` frames. A worker
//! can open no file, so it has no other code.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::sandboxing;
use crate::script::archive::is_script;
use crate::sealed::IS_NATIVE;
use sedge_core::code::{Code, EngineCode, SealedCode};
use sedge_core::isa::Class;
use sedge_core::version::Version;

/// Sends the length and the file. Never blocks: fails with `AGAIN` or `TOOMANYREFS` where the socket or the user has too
/// many files in flight.
pub fn send(socket: &UnixStream, code: &SealedCode) -> rustix::io::Result<()> {
    let files = [code.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&files));
    let len = (code.len() as u64).to_le_bytes();
    sendmsg(socket, &[IoSlice::new(&len)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// Receives the next file. Blocks until it is there.
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
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the daemon passed no file with compiled code")),
    }
}

/// Returns whether this machine passes code as files.
pub fn is_passed() -> bool {
    IS_NATIVE && sandboxing::has_filter()
}

/// Holds compiled code for the workers: sealed, where this machine passes code as files.
fn hold(code: Bytes) -> Code {
    if !is_passed() {
        return Code::Plain(code);
    }
    match crate::sealed::seal(&code) {
        Ok(sealed) => Code::Sealed(Arc::new(sealed)),
        Err(error) => {
            // The worker answers that it cannot load this.
            tracing::error!(%error, "failed to seal compiled code for the workers");
            Code::Plain(code)
        }
    }
}

/// The compiled engines for scripts, held for the workers from the first script of a class on.
#[derive(Clone, Debug, Default)]
pub struct ScriptEngines(Arc<Mutex<BTreeMap<Class, Arc<EngineCode>>>>);

impl ScriptEngines {
    pub(crate) fn has(&self, class: Class) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&class)
    }

    pub(crate) fn add(&self, class: Class, code: Bytes) {
        let engine = Arc::new(EngineCode { class, code: hold(code) });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(class, engine);
    }

    /// Holds the code of a version for the workers: a script with its engine.
    pub fn hold(&self, mut version: Version) -> Version {
        match &version.code {
            Code::Plain(archive) if is_script(archive) => {
                let engines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                // Without it the worker answers that it has no engine.
                if let Some(engine) = engines.get(&version.class()) {
                    version.code = Code::Script { archive: archive.clone(), engine: Arc::clone(engine) };
                }
            }
            Code::Plain(code) => version.code = hold(code.clone()),
            Code::Sealed(_) | Code::Script { .. } => {}
        }
        version
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
            send(&near, &crate::sealed::seal(code).unwrap()).unwrap();
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
