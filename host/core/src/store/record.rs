//! Records of the outbox, and gaps where records were lost.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::stream::Stream;
use crate::trace::TraceContext;

/// Position of a record in its stream, from 1. Ids only grow and are never reused, not even after the stream was
/// emptied and the daemon restarted. As a watermark, 0 stands before the first record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId(pub u64);

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Message that waits to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub stream: Stream,
    pub function: Arc<str>,
    pub topic: Box<str>,
    pub payload: Bytes,
    pub content_type: Option<Box<str>>,
    pub retain: bool,
    /// Number of functions that the message went through, this one included.
    pub hops: u32,
    /// Number of publications that the message may cause, over all functions that it passes.
    pub fan_out: u32,
    /// Whether the clock was synchronised at that time.
    pub clock_synced: bool,
    /// Unix time of the board in milliseconds.
    pub at_ms: u64,
    /// The trace that it belongs to, and the span that made it.
    pub trace: Option<Arc<TraceContext>>,
    /// Whether it stands for several: the payload is a [`crate::fold::Fold`].
    pub is_folded: bool,
}

impl Record {
    /// Memory of the record, and about its size on disk.
    pub fn bytes(&self) -> usize {
        let content_type = self.content_type.as_ref().map_or(0, |kind| kind.len());
        let trace = self.trace.as_ref().map_or(0, |trace| trace.bytes());
        self.payload.len() + self.topic.len() + content_type + trace + RECORD_BYTES
    }
}

/// Memory of a record beside its texts and payload.
const RECORD_BYTES: usize = 200;

/// Committed record.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRecord {
    pub id: RecordId,
    pub record: Record,
}

/// Identifies a gap report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GapId(pub u64);

/// Range of lost records, reported upstream in their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub stream: Stream,
    pub reason: Box<str>,
    pub first_id: RecordId,
    pub last_id: RecordId,
    /// Number of records lost, at most all of the range.
    pub records: u64,
    /// Sum of their payloads.
    pub bytes: u64,
    pub first_at_ms: u64,
    pub last_at_ms: u64,
}

impl Gap {
    /// Takes in another of the same stream and reason.
    pub fn add(&mut self, other: &Self) {
        self.first_id = self.first_id.min(other.first_id);
        self.last_id = self.last_id.max(other.last_id);
        self.records += other.records;
        self.bytes += other.bytes;
        self.first_at_ms = self.first_at_ms.min(other.first_at_ms);
        self.last_at_ms = self.last_at_ms.max(other.last_at_ms);
    }
}

/// Reasons of gaps that the store makes by itself.
pub const FULL: &str = "full";
pub const EXPIRED: &str = "expired";
pub const DAMAGED: &str = "damaged";
/// The sink is no longer part of the configuration.
pub const REMOVED: &str = "sink-removed";
