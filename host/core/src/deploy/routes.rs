//! Routes of requests over HTTP belong to one function of the board.

use super::deployer::Deployer;
use super::payload::Install;
use super::reason::{Reason, Refusal};
use crate::manifest::Manifest;

impl Deployer {
    /// Refuses a version with a route that a version of another function has.
    pub(super) fn check_routes(&self, install: &Install) -> Result<(), Refusal> {
        let Ok(manifest) = Manifest::from_json(&install.manifest.to_json(), None) else { return Ok(()) };
        if manifest.http.is_empty() {
            return Ok(());
        }
        for function in self.functions.values().filter(|function| function.name != manifest.name) {
            let record = &function.record;
            let candidate = record.candidate.as_ref().map(|candidate| &candidate.stored);
            let versions = record.active.iter().chain(candidate).chain(record.fallback());
            for other in versions.filter_map(|stored| Manifest::from_json(&stored.manifest.to_json(), None).ok()) {
                let Some((own, their)) = manifest.overlapping_route(&other) else { continue };
                let detail = format!(
                    "{own} and {their} of {} could both match one request: give one of them another path",
                    other.name
                );
                return Err(Refusal::new(Reason::RouteTaken, detail));
            }
        }
        Ok(())
    }
}
