//! The record of a function after an order, and the next step.

use super::function::{Stage, TrackedFunction};
use super::payload::{Module, OrderChange};
use super::reason::{Reason, Refusal};
use super::record::{Candidate, CandidateKind, OrderOutcome, Record, StoredVersion, Unproven};
use super::report::DeployState;
use crate::key::KeyId;

const REQUESTED: &str = "an order asked for it";

/// Whether a candidate has run the messages of its trial when it becomes active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    Given,
    Pending,
}

/// Step to take once the record is on disk.
#[derive(Debug)]
pub(crate) enum NextStep {
    StartCandidate,
    CandidateEnded,
    Promoted { edition: u32 },
    Removed,
    Nothing,
}

/// Returns the record that the order asks for.
pub(crate) fn decide(
    function: &TrackedFunction,
    serial: u64,
    change: OrderChange,
    chosen: Option<(StoredVersion, Module)>,
    signers: Vec<KeyId>,
) -> Result<(Record, NextStep), Refusal> {
    let mut record = function.record.clone();
    let name = &function.name;
    let not_installed = || Err(Refusal::new(Reason::NotInstalled, format!("{name} is not installed on this board")));
    let requested = Refusal::new(Reason::Requested, REQUESTED);
    let next = match change {
        OrderChange::Install(_) => {
            let Some((stored, module)) = chosen else {
                return Err(Refusal::new(Reason::NoCode, "nothing in the order is for this board"));
            };
            record.candidate = Some(Candidate { stored, kind: CandidateKind::Install(module), serial, signers });
            record.outcome = None;
            NextStep::StartCandidate
        }
        OrderChange::Remove if record.history.serial.is_none() => return not_installed(),
        OrderChange::Remove => {
            (record.active, record.previous, record.candidate) = (None, None, None);
            record.unproven = None;
            record.outcome = Some(OrderOutcome {
                serial: Some(serial),
                ..OrderOutcome::new(DeployState::Removed, Some(&requested))
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
                let (state, why) = (DeployState::RolledBack, Some(&requested));
                let outcome = match &record.active {
                    Some(active) => OrderOutcome::of_version(state, why, active),
                    None => OrderOutcome::new(state, why),
                };
                record.outcome = Some(OrderOutcome { serial: Some(serial), ..outcome });
                NextStep::CandidateEnded
            }
            None if record.active.is_none() => return not_installed(),
            None => match record.returns_to() {
                Some(previous) => {
                    let stored = previous.clone();
                    record.candidate = Some(Candidate { stored, kind: CandidateKind::Rollback, serial, signers });
                    record.outcome = None;
                    NextStep::StartCandidate
                }
                None => {
                    let detail = format!("{name} has no previous version");
                    return Err(Refusal::new(Reason::NoPrevious, detail));
                }
            },
        },
        OrderChange::Promote => {
            let trial = function.work.as_ref().filter(|work| matches!(work.stage, Stage::Trial(_)));
            if let (None, Some(active), Some(_), Some(edition)) =
                (&record.candidate, &record.active, &record.unproven, function.serving)
            {
                let outcome = OrderOutcome::of_version(DeployState::Active, None, active);
                record.outcome = Some(OrderOutcome { serial: Some(serial), ..outcome });
                record.prove();
                return Ok((record, NextStep::Promoted { edition }));
            }
            let (Some(work), Some(_)) = (trial, &record.candidate) else {
                let detail = format!("no version of {name} is on trial");
                return Err(Refusal::new(Reason::NoTrial, detail));
            };
            if let Some(candidate) = &mut record.candidate {
                candidate.serial = serial;
            }
            record.promote(Proof::Given);
            NextStep::Promoted { edition: work.edition }
        }
        OrderChange::Keys(_) => return Err(Refusal::new(Reason::BadEnvelope, "a change of keys is for _keys")),
        OrderChange::Settings(_) => {
            return Err(Refusal::new(Reason::BadEnvelope, "a change of settings is sent under settings/"));
        }
    };
    Ok((record, next))
}

impl Record {
    /// Makes the candidate the active version.
    pub fn promote(&mut self, proof: Proof) {
        let Some(candidate) = self.candidate.take() else { return };
        let (state, why) = match candidate.kind {
            CandidateKind::Install(_) => (DeployState::Active, None),
            CandidateKind::Rollback => (DeployState::RolledBack, Some(Refusal::new(Reason::Requested, REQUESTED))),
        };
        self.outcome = Some(OrderOutcome::of_candidate(state, why.as_ref(), &candidate));
        // Pushing the active version again does not replace the previous one.
        let replaced = self.active.take().filter(|active| *active != candidate.stored);
        // A rollback order swaps the two; a newer version leaves what has proven itself to return to.
        let proven = match candidate.kind {
            CandidateKind::Install(_) => self.unproven.take().and_then(|unproven| unproven.fallback),
            CandidateKind::Rollback => None,
        };
        let replaced = proven.or(replaced);
        self.unproven = None;
        match proof {
            Proof::Pending => self.unproven = Some(Unproven { fallback: replaced }),
            Proof::Given => self.previous = replaced.or(self.previous.take()),
        }
        self.active = Some(candidate.stored);
    }
}
