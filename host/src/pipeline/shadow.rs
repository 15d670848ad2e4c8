//! A version that runs beside the active one: it gets the same messages, and what it makes of them is only compared.

use std::time::Instant;

use super::Pipeline;
use super::function::Edition;
use super::trial::Said;
use super::window::UnitId;
use crate::message::{Outcome, Verdict};

impl Pipeline {
    /// A version that runs as a shadow gets what the active one gets, after it.
    pub(super) fn add_shadows(&self, functions: &mut Vec<usize>, topic: &str) -> Option<Box<[Option<Said>; 2]>> {
        let shadows = functions.iter().filter_map(|number| self.functions[*number].shadow);
        let wants = |number: &usize| self.functions[*number].serving().is_some_and(|it| it.wants(topic));
        let shadows: Vec<usize> = shadows.filter(wants).collect();
        functions.extend(&shadows);
        // Two of them on one message: the outcomes of neither are compared.
        (shadows.len() == 1).then(Box::default)
    }

    /// What a shadow made of a message has no effect but on its own state, and is held against what the active version did.
    pub(super) fn settle_shadow(
        &mut self,
        id: UnitId,
        number: usize,
        edition: &Edition,
        outcome: Outcome,
        now: Instant,
        now_ms: u64,
    ) {
        let said = Said::of(&outcome.verdict);
        let failure = match outcome.verdict {
            Verdict::Failed(failure) if failure.code.is_misbehaviour() => Some(failure),
            _ => None,
        };
        self.keep_state(id, number, edition, outcome.writes);
        if let Some(candidate) = &mut self.functions[number].candidate {
            candidate.ran(failure.as_ref(), true);
        }
        self.compare(id, number, Some(said), now, now_ms);
        self.finish_job(id);
    }

    /// Once both a version and its shadow have run a message.
    pub(super) fn compare(&mut self, id: UnitId, number: usize, said: Option<Said>, now: Instant, now_ms: u64) {
        let (Some(said), Some(Some(unit))) = (said, self.units.get_mut(id)) else { return };
        let Some(compared) = &mut unit.compared else { return };
        let main = self.functions[number].shadow_of;
        compared[usize::from(main.is_some())] = Some(said);
        let [Some(active), Some(shadow)] = &**compared else { return };
        let Some(number) = main.map(|_| number).or(self.functions[number].shadow) else { return };
        if let Some(candidate) = &mut self.functions[number].candidate {
            candidate.compare(&unit.message.topic, active, shadow);
        }
        self.judge(number, None, now, now_ms);
    }
}
