//! Numbers that identify things inside one board, each with a type of its own.

use std::fmt;

/// A function's place in the rollout. Stays the same over its versions, also after the function is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionNo(pub u32);

/// A message that is being processed. Reused once its commit is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(pub u32);

/// A worker's slot; several processes may fill it one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerNo(pub u32);

/// Counts the processes that filled a worker's slot, so that a late word of an earlier one is recognised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Life(pub u32);

/// Number of a job within one slot, as it stands in the frames between daemon and worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobNo(pub u64);

/// One function on one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId {
    pub unit: UnitId,
    pub function: FunctionNo,
}

impl fmt::Display for WorkerNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl UnitId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl FunctionNo {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl WorkerNo {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}
