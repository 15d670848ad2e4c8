//! Runs that once broke a rule. The number of steps is the shortest run that broke it.

use sedge_sim::world::{Plan, run};

/// Seed, steps, and what was wrong.
const FOUND: [(u64, u32, &str); 4] = [
    (611, 447, "after a failure of the disk, an equal earlier message under the same packet id counted as committed"),
    (420, 314, "messages of one key were processed out of order"),
    (1155, 493, "a fingerprint of a lost session was written after the session was lost"),
    (458, 520, "the session was lost while the disk failed, and the store kept its fingerprints"),
];

#[test]
fn what_was_found_once_stays_fixed() {
    for (seed, steps, found) in FOUND {
        let (outcome, _) = run(seed, Plan { steps, ..Plan::default() }, false);
        assert!(outcome.messages > 0, "seed {seed} published nothing");
        assert!(outcome.violations.is_empty(), "seed {seed} ({found}): {:?}", outcome.violations);
    }
}
