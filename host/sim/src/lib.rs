//! A whole board in one thread, without sockets, files, processes or a clock: the core of the daemon between models of
//! everything around it.
//!
//! The models know nothing of the core but its inputs and effects. Each can be told to misbehave. [`mod@reference`] says what
//! must hold; [`world::run`] is one run from one seed; [`rig`] is a board whose surroundings do only what a test says.

pub mod broker;
pub mod clients;
pub mod disk;
pub mod faults;
pub mod random;
pub mod reference;
pub mod rig;
pub mod schedules;
pub mod silences;
pub mod spans;
pub mod store;
pub mod wakes;
pub mod worker;
pub mod world;

/// What a campaign must have reached: else its runs prove less than they seem to.
pub const RARE: [&str; 39] = [
    "a function had a worker of its own",
    "a function was paused",
    "a function was released",
    "a gap was reported",
    "a message was delivered again",
    "a message was lost with its connection",
    "a message was parked before it ran",
    "a receiver never answered",
    "a shadow differed",
    "a silent topic spoke again",
    "a silent topic was told",
    "a sink was away for days",
    "a trial failed",
    "a trial was late",
    "a trial was passed",
    "a topic was paused",
    "a version was loaded",
    "a worker held back a job",
    "data was thinned out",
    "a record was dropped from between others",
    "jobs waited over a power cut",
    "a wake ran although it was moved or cancelled when it was due",
    "a wake was moved or cancelled",
    "a schedule ran late",
    "a schedule was parked",
    "the clock was set back over a schedule",
    "a wake was parked",
    "a wake waited over a power cut",
    "the broker forgot the session",
    "a commit was on disk although it was reported as failed",
    "a message killed its worker twice",
    "the budget was used up",
    "state was forgotten to make room",
    "there was no room for state",
    "a repeat of a request had the answer of the first",
    "a request was answered while an earlier one of its id was in progress",
    "a request was turned away",
    "the trace of a parked message went on",
    "a record of a trace was sent",
];
