//! Deliberate mistakes, each of which the simulator must find. Without the feature `mistakes` none is ever made.

#[cfg(feature = "mistakes")]
use std::cell::Cell;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// Acknowledges when a commit is sent, not when it is confirmed.
    AcknowledgeBeforeCommit,
    /// Acknowledges what is committed first, not what was received first.
    AcknowledgeOutOfOrder,
    /// Takes the DUP flag alone as evidence of a commit.
    BelieveDup,
    /// Runs a message again that is still being processed when it is redelivered.
    ForgetInFlight,
    /// Runs a message although an earlier one of its key is parked.
    OvertakeParked,
    /// Loads state without the writes that were not sent to the store.
    LoseUnsentWrites,
    /// Leaves a parked job in the store after it has run.
    KeepParked,
    /// Takes a request of a receiver to send again as its acceptance.
    AcceptRetry,
    /// Sends data before alerts.
    DataBeforeAlerts,
    /// Leaves out the copy of one sink.
    SkipCopy,
    /// Leaves what a run returned out of the history.
    SkipHistory,
    /// Does not run the jobs of a crashed worker again.
    LoseCrashedJobs,
    /// Makes a message a dead letter when a version on trial fails over it.
    NoFallback,
    /// Keeps a connection on which an answer is missing.
    NeverReconnect,
    /// Says that it has fewer records in memory than it has, so that the store folds some that are sent.
    HoldMore,
    /// Counts records in a gap that were delivered.
    CountDelivered,
    /// Keeps what it knows of a session that the broker has lost.
    KeepLostSession,
    /// Lets several workers run jobs that share one state.
    SplitState,
    /// Does not count what functions return towards the budget.
    ForgetOutputs,
    /// Hands out jobs although what they may return does not fit into the budget.
    HandOutBeyondBudget,
    /// Accepts writes beyond the bounds of state.
    GrowBeyondBound,
    /// Leaves what a refused run wrote in the worker's memory.
    KeepRefusedWrites,
    /// Pauses a function for topics over which it does not fail.
    PauseOthers,
    /// Deletes a wake when it is due, and not with what comes of it.
    DeleteWakeEarly,
    /// Commits what comes of the run of a schedule without a note that it ran.
    ForgetScheduleRun,
    /// Answers a request when it is processed, not when the commit is confirmed.
    AnswerBeforeCommit,
    /// Commits a call about a silent topic without that it was made.
    ForgetTold,
    /// Drops the traces of messages whose acknowledgement is cut off.
    ForgetTraces,
    /// Reports new settings while workers still run jobs with the older ones.
    ReportSettingsEarly,
    /// Wants to be called again at once, as long as a shadow runs whose time is over.
    StayDue,
}

#[cfg(feature = "mistakes")]
thread_local! {
    static MADE: Cell<Option<Mistake>> = const { Cell::new(None) };
}

/// Makes a mistake in all boards of this thread.
#[cfg(feature = "mistakes")]
pub fn make(mistake: Option<Mistake>) {
    MADE.set(mistake);
}

#[cfg(feature = "mistakes")]
pub(crate) fn is_made(mistake: Mistake) -> bool {
    MADE.get() == Some(mistake)
}

#[cfg(not(feature = "mistakes"))]
pub(crate) const fn is_made(_: Mistake) -> bool {
    false
}
