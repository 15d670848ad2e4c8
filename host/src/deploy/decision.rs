//! What a record is to be after an order, and what follows from that.

use super::function::{Stage, TrackedFunction};
use super::host::Chosen;
use super::payload::OrderChange;
use super::reason::{Reason, Refusal};
use super::record::{Candidate, CandidateKind, OrderOutcome, Record, StoredVersion};
use super::report::DeployState;
use crate::key::KeyId;

/// What to do once the record is on disk.
pub enum NextStep {
    /// Work on the new candidate.
    Begin,
    /// The candidate is no more.
    Ended,
    Promoted {
        edition: u32,
    },
    Removed,
    /// The candidate stays as it is.
    Nothing,
}

/// The record as the order wants it.
pub fn decide(
    function: &TrackedFunction,
    serial: u64,
    change: OrderChange,
    chosen: Option<Chosen>,
    signers: Vec<KeyId>,
) -> Result<(Record, NextStep), Refusal> {
    let mut record = function.record.clone();
    let name = &function.name;
    let not_installed = || Err(Refusal::new(Reason::NotInstalled, format!("{name} is not installed on this board")));
    let requested = Refusal::new(Reason::Requested, "an order said so");
    let then = match change {
        OrderChange::Install(install) => {
            let Some(Chosen { module, is_code }) = chosen else {
                return Err(Refusal::new(Reason::NoCode, "nothing in it is for this board"));
            };
            let stored = StoredVersion { manifest: install.manifest, digest: module.digest, is_code };
            record.candidate = Some(Candidate { stored, kind: CandidateKind::Install(module), serial, signers });
            record.outcome = None;
            NextStep::StartCandidate
        }
        OrderChange::Remove if record.line.serial.is_none() => return not_installed(),
        OrderChange::Remove => {
            (record.active, record.previous, record.candidate) = (None, None, None);
            record.outcome = Some(OrderOutcome {
                serial: Some(serial),
                ..OrderOutcome::new(DeployState::Removed, Some(&requested), None)
            });
            NextStep::Removed
        }
        OrderChange::Rollback => match &mut record.candidate {
            Some(candidate) if candidate.kind == CandidateKind::Rollback => {
                candidate.serial = serial;
                candidate.signers = signers;
                NextStep::Nothing
            }
            Some(_) => {
                record.candidate = None;
                let active = record.active.as_ref().map(|it| (it.version(), serial, it.digest));
                let outcome = OrderOutcome::new(DeployState::RolledBack, Some(&requested), active);
                record.outcome = Some(OrderOutcome { serial: Some(serial), ..outcome });
                NextStep::Ended
            }
            None if record.active.is_none() => return not_installed(),
            None => match &record.previous {
                Some(previous) => {
                    let stored = previous.clone();
                    record.candidate = Some(Candidate { stored, kind: CandidateKind::Rollback, serial, signers });
                    record.outcome = None;
                    NextStep::StartCandidate
                }
                None => {
                    let detail = format!("there is no version of {name} before the one that runs");
                    return Err(Refusal::new(Reason::NoPrevious, detail));
                }
            },
        },
        OrderChange::Promote => {
            let trial = function.work.as_ref().filter(|work| matches!(work.stage, Stage::Trial(_)));
            let (Some(work), Some(_)) = (trial, &record.candidate) else {
                let detail = format!("no version of {name} is on trial");
                return Err(Refusal::new(Reason::NoTrial, detail));
            };
            if let Some(candidate) = &mut record.candidate {
                candidate.serial = serial;
            }
            record.promote();
            NextStep::Promoted { edition: work.edition }
        }
        OrderChange::Keys(_) => return Err(Refusal::new(Reason::BadEnvelope, "a change of keys is for _keys")),
    };
    Ok((record, then))
}

impl Record {
    /// The candidate has proved itself.
    pub fn promote(&mut self) {
        let Some(candidate) = self.candidate.take() else { return };
        let (state, why) = match candidate.kind {
            CandidateKind::Install(_) => (DeployState::Active, None),
            CandidateKind::Rollback => {
                (DeployState::RolledBack, Some(Refusal::new(Reason::Requested, "an order said so")))
            }
        };
        self.outcome = Some(OrderOutcome::of(state, why.as_ref(), &candidate));
        // The same version pushed again leaves what a rollback returns to.
        if self.active.as_ref() != Some(&candidate.stored) {
            self.previous = self.active.take();
        }
        self.active = Some(candidate.stored);
    }
}
