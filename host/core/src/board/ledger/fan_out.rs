//! The budget of publications that travels with a message beside its hops.
//!
//! Hops bound how deep functions answer each other, not how wide: two that answer with 64 publications each make 64^8 of one
//! message. A message therefore carries how many publications it may cause. Its functions share that, and each publication
//! carries on a part of its function's share.

use crate::message::{Failure, FailureCode, Output};

#[derive(Clone, Copy, Debug)]
pub(crate) struct FanOut {
    /// What the message came with.
    budget: u32,
    /// Publications that its functions may still return. Not divided beforehand: most functions return few.
    left: u32,
    /// What one function's outputs carry on.
    share: u32,
}

impl FanOut {
    /// `jobs`: functions that receive the message.
    pub(crate) fn new(budget: u32, jobs: usize) -> Self {
        Self { budget, left: budget, share: budget / u32::try_from(jobs.max(1)).unwrap_or(u32::MAX) }
    }

    /// Publications that the message may cause in all.
    pub(crate) fn budget(&self) -> u32 {
        self.budget
    }

    /// Takes the outputs of one function off the budget. Returns the budget of each of them. Alerts cause publications, but
    /// are none themselves: only a message with nothing left may not raise one.
    pub(crate) fn spend(&mut self, outputs: &[Output]) -> Result<u32, Failure> {
        let is_publication = |output: &&Output| matches!(output, Output::Forward(_) | Output::Publish(_));
        let publications = u32::try_from(outputs.iter().filter(is_publication).count()).unwrap_or(u32::MAX);
        let all = u32::try_from(outputs.len()).unwrap_or(u32::MAX);
        let is_spent = all > 0 && self.budget == 0 || publications > self.left;
        if is_spent {
            let (left, budget) = (self.left, self.budget);
            let detail = format!(
                "{all} outputs; of the {budget} publications that this message may cause, {left} are left \
                 (functions.max_fan_out)"
            );
            return Err(Failure { code: FailureCode::FanOut, detail });
        }
        self.left = self.left.saturating_sub(publications);
        Ok(self.share.saturating_sub(all).checked_div(all).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::Publication;

    fn publications(number: usize) -> Vec<Output> {
        let publication =
            Publication { topic: "t".into(), payload: Bytes::new(), content_type: None, retain: false, sink: None };
        vec![Output::Publish(publication); number]
    }

    /// Runs of two functions that answer each other, from one message.
    fn runs(budget: u32, outputs: usize, depth: u32) -> u64 {
        let mut fan_out = FanOut::new(budget, 1);
        match fan_out.spend(&publications(outputs)) {
            Ok(each) if depth > 0 => 1 + outputs as u64 * runs(each, outputs, depth - 1),
            _ => 1,
        }
    }

    #[test]
    fn whatever_functions_answer_the_messages_of_an_avalanche_are_bounded() {
        for outputs in [1, 2, 3, 8, 64, 999] {
            let runs = runs(1000, outputs, 1000);
            assert!(runs <= 2001, "{outputs} outputs each: {runs} runs");
        }
        assert_eq!(runs(1000, 1, 8), 9, "a chain is not an avalanche");
    }

    #[test]
    fn functions_share_what_their_message_may_cause() {
        let mut fan_out = FanOut::new(100, 4);
        assert_eq!(fan_out.spend(&publications(5)), Ok(4));
        assert_eq!(fan_out.spend(&publications(95)), Ok(0));
        assert_eq!(fan_out.spend(&[]), Ok(0));
        let failure = fan_out.spend(&publications(1)).unwrap_err();
        assert_eq!(failure.code, FailureCode::FanOut);
        assert!(failure.detail.starts_with("1 outputs; of the 100 publications"), "{}", failure.detail);
    }
}
