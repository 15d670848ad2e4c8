//! A version of a function that can run: made by the deployer, placed by the board, loaded by the workers.

use std::sync::Arc;

use bytes::Bytes;

use crate::code::Code;
use crate::isa::Class;
use crate::limits::Limits;
use crate::manifest::{Manifest, StateScope, Trial};
use crate::message::Digest;
use crate::permits::Permits;
use crate::schedule::Zone;

/// An installed version of a function. Workers can load it once it has code.
#[derive(Clone, Debug)]
pub struct Version {
    /// Names the version for as long as the daemon lives; never used before.
    pub edition: u32,
    pub manifest: Arc<Manifest>,
    /// Digest of the module, or of the native code that was compiled elsewhere.
    pub digest: Digest,
    pub limits: Limits,
    pub permits: Permits,
    /// From this host's compiler, or from a source that is trusted to send native code. Empty code cannot be loaded.
    pub code: Code,
    /// The code is being compiled and follows with another edition: messages wait for it in the store.
    pub is_awaited: bool,
    /// `None`: serves at once.
    pub trial: Option<Trial>,
    /// Served before, without having run the messages of its trial: serves at once, guarded by what serves now.
    pub is_resumed: bool,
    /// The zone of its schedules. `None`: it has none, or the board does not know that zone.
    pub zone: Option<Zone>,
}

impl Version {
    /// A version that serves at once, without an edition and without schedules.
    pub fn new(manifest: Manifest, digest: Digest, code: Bytes, base_topic: &str) -> Self {
        let limits = &manifest.limits;
        let limits = Limits {
            fuel: limits.fuel.get(),
            timeout_ms: limits.timeout_ms.get(),
            memory_bytes: limits.memory_bytes.get(),
            outputs: limits.outputs as usize,
            output_bytes: limits.output_bytes,
            state_bytes: if manifest.state == StateScope::None { 0 } else { limits.state_bytes },
        };
        Self {
            edition: 0,
            digest,
            limits,
            permits: Permits::new(&manifest.allow, base_topic),
            manifest: manifest.into(),
            code: Code::Plain(code),
            is_awaited: false,
            trial: None,
            is_resumed: false,
            zone: None,
        }
    }

    /// A version whose code is text, for a simulated worker. Nothing else can run it.
    pub fn scripted(edition: u32, manifest: Manifest, digest: Digest, script: &str, trial: Option<Trial>) -> Self {
        let code = Bytes::copy_from_slice(script.as_bytes());
        Self { edition, trial, zone: Some(Zone::utc()), ..Self::new(manifest, digest, code, "sedge") }
    }

    /// The code of [`Version::scripted`].
    pub fn script(&self) -> Option<&str> {
        str::from_utf8(self.code.bytes()).ok()
    }

    /// The engine that its code is compiled for.
    pub fn class(&self) -> Class {
        Class::for_memory(self.limits.memory_bytes)
    }

    /// The settings of the function itself, without what is laid over them.
    pub fn settings(&self) -> Vec<(String, String)> {
        self.manifest.config.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}
