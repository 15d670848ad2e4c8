//! A version of a function as it passes from the deployer through the board to the workers.

use std::sync::Arc;

use crate::code::Code;
pub use crate::deploy::TrialEvent;
pub use crate::deploy::report::{Difference, TrialTally};
use crate::limits::Limits;
use crate::manifest::{Manifest, StateScope, Trial};
use crate::message::Digest;
use crate::permits::Permits;
use crate::schedule::Zone;

/// An installed version, ready to be loaded.
#[derive(Clone, Debug)]
pub struct Version {
    /// Names the version for as long as the daemon lives; never used before.
    pub edition: u32,
    pub manifest: Arc<Manifest>,
    pub digest: Digest,
    pub limits: Limits,
    pub permits: Permits,
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
    /// A version whose code is text, for a simulated worker. Nothing else can run it.
    pub fn scripted(edition: u32, manifest: Manifest, digest: Digest, script: &str, trial: Option<Trial>) -> Self {
        let limits = &manifest.limits;
        let limits = Limits {
            fuel: limits.fuel.get(),
            timeout_ms: limits.timeout_ms.get(),
            memory_bytes: limits.memory_bytes.get(),
            outputs: limits.outputs as usize,
            output_bytes: limits.output_bytes,
            state_bytes: if manifest.state == StateScope::None { 0 } else { limits.state_bytes },
        };
        let permits = Permits::new(&manifest.allow, "sedge");
        let code = Code::Plain(bytes::Bytes::copy_from_slice(script.as_bytes()));
        Self {
            edition,
            manifest: manifest.into(),
            digest,
            limits,
            permits,
            code,
            is_awaited: false,
            trial,
            is_resumed: false,
            zone: Some(Zone::utc()),
        }
    }

    /// The code of [`Version::scripted`].
    pub fn script(&self) -> Option<&str> {
        match &self.code {
            Code::Plain(code) => str::from_utf8(code).ok(),
            Code::Sealed(_) | Code::Script { .. } => None,
        }
    }
}
