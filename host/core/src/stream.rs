//! The three streams of committed records, and values kept per stream.

use std::ops::{Index, IndexMut};

/// Destination of a record. The number is stored on disk and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stream {
    /// Upstream, ahead of data.
    Alert = 0,
    /// Upstream.
    Data = 1,
    /// The local broker: publications of functions, and the local echo of alerts.
    Local = 2,
}

impl Stream {
    pub const ALL: [Self; 3] = [Self::Alert, Self::Data, Self::Local];

    /// Name in metrics, gap reports and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::Data => "data",
            Self::Local => "local",
        }
    }
}

/// One value per stream, indexed by [`Stream`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerStream<T>([T; Stream::ALL.len()]);

impl<T> PerStream<T> {
    /// In the order of [`Stream::ALL`].
    pub const fn new(values: [T; Stream::ALL.len()]) -> Self {
        Self(values)
    }
}

impl<T> Index<Stream> for PerStream<T> {
    type Output = T;

    fn index(&self, stream: Stream) -> &T {
        &self.0[stream as usize]
    }
}

impl<T> IndexMut<Stream> for PerStream<T> {
    fn index_mut(&mut self, stream: Stream) -> &mut T {
        &mut self.0[stream as usize]
    }
}
