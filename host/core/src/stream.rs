//! The streams of committed records, and values kept per stream: alerts and data of each sink, and publications to the
//! local broker.

use std::fmt;
use std::ops::{Index, IndexMut};

/// Sinks that the store can hold records of, those included that were removed from the configuration.
pub const SINKS: usize = 15;

/// Two of each sink, and that of the local broker.
pub const STREAMS: usize = 2 * SINKS + 1;

/// Number of a sink: a receiver named in the configuration. Given by the store and kept with its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SinkId(u8);

impl SinkId {
    /// The sink called `upstream`, the only one of a database without named sinks.
    pub const UPSTREAM: Self = Self(0);

    /// `None`: more than [`SINKS`].
    pub fn new(number: usize) -> Option<Self> {
        u8::try_from(number).ok().filter(|_| number < SINKS).map(Self)
    }

    pub fn all() -> impl Iterator<Item = Self> {
        (0..SINKS as u8).map(Self)
    }

    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// To a sink, ahead of its data.
    Alert,
    /// To a sink.
    Data,
    /// The local broker: publications of functions, and the local echo of alerts.
    Local,
}

/// Destination of a record, as its number on disk, which never changes:
///
/// ```text
/// 0, 1        alerts and data of `upstream`
/// 2           the local broker
/// 2n+1, 2n+2  alerts and data of sink n, from 1 on
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stream(u8);

impl Stream {
    /// Of [`SinkId::UPSTREAM`].
    pub const ALERT: Self = Self(0);
    /// Of [`SinkId::UPSTREAM`].
    pub const DATA: Self = Self(1);
    pub const LOCAL: Self = Self(2);

    /// Those of a board with one sink.
    pub const FIRST: [Self; 3] = [Self::ALERT, Self::DATA, Self::LOCAL];

    pub const fn alerts(sink: SinkId) -> Self {
        match sink.0 {
            0 => Self::ALERT,
            n => Self(2 * n + 1),
        }
    }

    pub const fn data(sink: SinkId) -> Self {
        match sink.0 {
            0 => Self::DATA,
            n => Self(2 * n + 2),
        }
    }

    /// In the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..STREAMS as u8).map(Self)
    }

    /// `None`: no stream has this number.
    pub fn of_number(number: usize) -> Option<Self> {
        u8::try_from(number).ok().filter(|_| number < STREAMS).map(Self)
    }

    pub const fn index(self) -> usize {
        self.0 as usize
    }

    pub const fn kind(self) -> StreamKind {
        match self.0 {
            0 => StreamKind::Alert,
            1 => StreamKind::Data,
            2 => StreamKind::Local,
            n if n % 2 == 1 => StreamKind::Alert,
            _ => StreamKind::Data,
        }
    }

    /// `None`: the local broker.
    pub const fn sink(self) -> Option<SinkId> {
        match self.0 {
            0 | 1 => Some(SinkId::UPSTREAM),
            2 => None,
            n => Some(SinkId((n - 1) / 2)),
        }
    }

    /// Name in metrics, gap reports and logs.
    pub const fn as_str(self) -> &'static str {
        match self.kind() {
            StreamKind::Alert => "alert",
            StreamKind::Data => "data",
            StreamKind::Local => "local",
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sink() {
            Some(SinkId::UPSTREAM) | None => f.write_str(self.as_str()),
            Some(sink) => write!(f, "{} of sink {}", self.as_str(), sink.index()),
        }
    }
}

/// One value per stream, indexed by [`Stream`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerStream<T>([T; STREAMS]);

impl<T> PerStream<T> {
    /// The values of the streams of [`Stream::FIRST`].
    pub fn of_first(values: [T; 3]) -> Self
    where
        Self: Default,
    {
        let mut all = Self::default();
        all.0.iter_mut().zip(values).for_each(|(place, value)| *place = value);
        all
    }

    /// In the order of [`Stream::all`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut()
    }

    /// In the order of [`Stream::all`].
    pub fn values(&self) -> &[T; STREAMS] {
        &self.0
    }
}

impl<T> Index<Stream> for PerStream<T> {
    type Output = T;

    fn index(&self, stream: Stream) -> &T {
        &self.0[stream.index()]
    }
}

impl<T> IndexMut<Stream> for PerStream<T> {
    fn index_mut(&mut self, stream: Stream) -> &mut T {
        &mut self.0[stream.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stream_has_a_number_of_its_own() {
        let mut numbers = vec![Stream::LOCAL.index()];
        for sink in SinkId::all() {
            let (alerts, data) = (Stream::alerts(sink), Stream::data(sink));
            assert_eq!((alerts.sink(), data.sink()), (Some(sink), Some(sink)));
            assert_eq!((alerts.kind(), data.kind()), (StreamKind::Alert, StreamKind::Data));
            numbers.extend([alerts.index(), data.index()]);
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (0..STREAMS).collect::<Vec<_>>());
        assert_eq!(Stream::all().count(), STREAMS);
        assert_eq!(Stream::LOCAL.sink(), None);
        assert!(SinkId::new(SINKS).is_none() && Stream::of_number(STREAMS).is_none());
    }
}
