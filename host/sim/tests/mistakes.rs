//! The simulator finds mistakes: each of these is found within 1,000 seeds, as a breach of the rule that it is about.

use sedge_core::mistakes::{self, Mistake};
use sedge_sim::reference;
use sedge_sim::world::{Plan, run};

const SEEDS: u64 = 1000;

fn breaks(seed: u64, rule: &str) -> bool {
    let (outcome, _) = run(seed, Plan::default(), false);
    outcome.violations.first().is_some_and(|it| it.rule == rule)
}

#[track_caller]
fn is_found(mistake: Mistake, rule: &str) {
    mistakes::make(Some(mistake));
    let found = (0..SEEDS).find(|seed| breaks(*seed, rule));
    mistakes::make(None);
    let Some(seed) = found else { panic!("{mistake:?} breaks \"{rule}\" in none of {SEEDS} runs") };
    println!("{mistake:?}: seed {seed}");
    assert!(!breaks(seed, rule), "seed {seed} breaks the rule without the mistake as well");
}

#[test]
fn an_acknowledgement_before_the_commit() {
    is_found(Mistake::AcknowledgeBeforeCommit, reference::ACKNOWLEDGED_LATE);
}

#[test]
fn an_answer_before_the_commit() {
    is_found(Mistake::AnswerBeforeCommit, reference::ANSWERED_LATE);
}

#[test]
fn acknowledgements_out_of_order() {
    is_found(Mistake::AcknowledgeOutOfOrder, reference::ACK_ORDER);
}

#[test]
fn a_dup_flag_taken_as_evidence_of_a_commit() {
    is_found(Mistake::BelieveDup, reference::ACKNOWLEDGED_LATE);
}

#[test]
fn a_message_in_processing_that_is_run_again() {
    is_found(Mistake::ForgetInFlight, reference::SETTLED_ONCE);
}

#[test]
fn a_message_that_overtakes_a_parked_one() {
    is_found(Mistake::OvertakeParked, reference::IN_ORDER);
}

#[test]
fn state_without_the_writes_that_were_not_sent() {
    is_found(Mistake::LoseUnsentWrites, reference::STATE_ONCE);
}

#[test]
fn a_parked_job_that_stays_in_the_store() {
    is_found(Mistake::KeepParked, reference::PROGRESS);
}

#[test]
fn a_busy_receiver_taken_as_one_that_accepted() {
    is_found(Mistake::AcceptRetry, reference::OUTBOX_ONCE);
}

#[test]
fn data_before_alerts() {
    is_found(Mistake::DataBeforeAlerts, reference::ALERTS_FIRST);
}

#[test]
fn a_sink_without_its_own_copy() {
    is_found(Mistake::SkipCopy, reference::OWN_COPY);
}

#[test]
fn results_that_the_history_lacks() {
    is_found(Mistake::SkipHistory, reference::HISTORY);
}

#[test]
fn a_record_that_is_folded_and_sent() {
    is_found(Mistake::HoldMore, reference::OUTBOX_ONCE);
}

#[test]
fn jobs_of_a_crashed_worker_that_are_lost() {
    is_found(Mistake::LoseCrashedJobs, reference::PROGRESS);
}

#[test]
fn a_failed_trial_without_another_run() {
    is_found(Mistake::NoFallback, reference::TRIAL_SAFE);
}

#[test]
fn a_missing_answer_without_a_new_connection() {
    is_found(Mistake::NeverReconnect, reference::PROGRESS);
}

#[test]
fn two_workers_with_one_state() {
    is_found(Mistake::SplitState, reference::STATE_ONCE);
}

#[test]
fn a_gap_that_counts_what_was_delivered() {
    is_found(Mistake::CountDelivered, reference::OUTBOX_ONCE);
}

#[test]
fn outputs_missing_from_the_budget() {
    is_found(Mistake::ForgetOutputs, reference::BUDGET);
}

#[test]
fn jobs_whose_answers_do_not_fit() {
    is_found(Mistake::HandOutBeyondBudget, reference::BUDGET);
}

#[test]
fn deliveries_of_a_lost_session_taken_as_evidence() {
    is_found(Mistake::KeepLostSession, reference::SETTLED_ONCE);
}

#[test]
fn a_pause_for_what_others_sent() {
    is_found(Mistake::PauseOthers, reference::PAUSES);
}

#[test]
fn a_schedule_whose_runs_are_not_noted() {
    is_found(Mistake::ForgetScheduleRun, reference::SCHEDULES);
}

#[test]
fn a_wake_that_is_deleted_when_it_is_due() {
    is_found(Mistake::DeleteWakeEarly, reference::WAKES);
}

#[test]
fn traces_that_end_with_the_connection() {
    is_found(Mistake::ForgetTraces, reference::TRACES);
}

#[test]
fn a_silence_that_is_told_again_after_a_restart() {
    is_found(Mistake::ForgetTold, reference::SILENCES);
}

#[test]
fn a_shadow_whose_time_is_over_all_the_time() {
    is_found(Mistake::StayDue, reference::NOT_BUSY);
}

#[test]
fn settings_that_are_reported_before_they_are_in_force() {
    is_found(Mistake::ReportSettingsEarly, reference::SETTINGS);
}

#[test]
fn state_that_grows_beyond_its_bound() {
    is_found(Mistake::GrowBeyondBound, reference::STATE_BOUND);
}

#[test]
fn refused_writes_that_a_worker_keeps() {
    is_found(Mistake::KeepRefusedWrites, reference::STATE_BOUND);
}
