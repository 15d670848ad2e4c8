//! Runs that once broke a rule, with as few steps as broke it.
//!
//! Any change of the simulator or of the core's effects makes another run of a seed. The last run of the first, third and
//! fourth fault was added later: it breaks the rule again if the fix is taken out.

use sedge_sim::world::{Plan, run};

/// What was wrong, and the runs that found it: seed and steps.
const FOUND: [(&str, &[(u64, u32)]); 4] = [
    (
        "after a failure of the disk, an equal earlier message under the same packet id counted as committed",
        &[(611, 447), (561, 184)],
    ),
    ("messages of one key were processed out of order", &[(420, 314)]),
    ("a fingerprint of a lost session was written after the session was lost", &[(1155, 493), (152, 540)]),
    ("the session was lost while the disk failed, and the store kept its fingerprints", &[(458, 520), (2782, 588)]),
];

#[test]
fn what_was_found_once_stays_fixed() {
    for (fault, runs) in FOUND {
        for &(seed, steps) in runs {
            let (outcome, _) = run(seed, Plan { steps, ..Plan::default() }, false);
            assert!(outcome.messages > 0, "seed {seed} published nothing");
            assert!(outcome.violations.is_empty(), "seed {seed}: {fault}: {:?}", outcome.violations);
        }
    }
}
