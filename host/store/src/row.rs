//! Row format: a version byte, then varints, strings and bytes.
//!
//! ```text
//! segment    2, count, at_ms of the first record, count × record
//! thinned    3, count, at_ms of the first record, its id, count × (id minus that of the previous record, record)
//! record     flags (1 retain, 2 content type, 4 refused, 8 fan-out, 16 clock not synced, 32 trace, 64 folded), hops, [fan-out],
//!            at_ms minus that of the previous record (zigzag),
//!            function, topic, [content type], [trace], payload length, payload, sum of the record with its id
//! trace      trace id, span id, flags, tracestate (empty for none)
//! message    flags (1 content type, 2 clock synced, 4 retained, 8 response topic, 16 correlation data, 32 trace), topic, [content type],
//!            payload length, payload, property count, count × (key, value), received_at_ms, attempt, [response topic],
//!            [correlation data length, correlation data], [trace]
//! dead       2, version, detail, fuel, elapsed_us, memory_bytes, output_bytes, message, sum of these and the columns
//! parked     2, due_ms, wait_ms, function, message, sum of these
//! wake       2, flags (1 shared, 2 clock synced, 4 trace), due_ms, wait_ms, name, topic, hops, fan-out, [trace], sum of
//!            these, the id and the function
//! heard      2, stage (0 speaking, 1 silent, 2 back), at_ms, slack_ms, silent_ms, topic, sum of these, the id, the turn and
//!            the function
//! schedule   2, spec, seen_ms, number of ranges, first and length of each, sum of these, the function and the name
//! string     2 × length, bytes; or 2 × offset + 1, where offset is the start of the same string in this row
//! sum        CRC-32, little-endian. Rows of version 1 have none, and parked jobs no wait_ms
//! ```
//!
//! A segment is one row with the records that one transaction added to a stream. One row is several times cheaper to
//! insert and delete than a row per record, and functions and topics are written once.

use std::sync::Arc;

use bytes::Bytes;

use sedge_core::message::{Failure, FailureCode, Message, Usage};
use sedge_core::store::{
    DeadLetter, HeardId, HeardStage, Parked, ParkedId, Record, RecordId, StoredHeard, StoredRecord, StoredSchedule,
    StoredWake, WakeId,
};
use sedge_core::stream::Stream;
use sedge_core::trace::TraceContext;

const VERSION: u8 = 2;
/// Of segments whose ids need not be consecutive.
const THINNED: u8 = 3;
/// Written by databases of layout 1.
const WITHOUT_SUMS: u8 = 1;
const SUM_BYTES: usize = 4;
/// Size of the smallest record, which bounds how many a row can hold.
pub(super) const RECORD_MIN_BYTES: u64 = 6;

const RETAIN: u8 = 1;
const CONTENT_TYPE: u8 = 2;
const REFUSED: u8 = 4;
/// Absent from records of earlier versions.
const FAN_OUT: u8 = 8;
/// Earlier versions did not say it of records.
const CLOCK_UNSYNCED: u8 = 16;
const TRACE: u8 = 32;
const FOLDED: u8 = 64;

const MESSAGE_CONTENT_TYPE: u8 = 1;
const MESSAGE_CLOCK_SYNCED: u8 = 2;
const MESSAGE_RETAINED: u8 = 4;
const MESSAGE_RESPONSE_TOPIC: u8 = 8;
const MESSAGE_CORRELATION_DATA: u8 = 16;
const MESSAGE_TRACE: u8 = 32;

const WAKE_SHARED: u8 = 1;
const WAKE_CLOCK_SYNCED: u8 = 2;
const WAKE_TRACE: u8 = 4;

const HEARD_SPEAKING: u8 = 0;
const HEARD_SILENT: u8 = 1;
const HEARD_BACK: u8 = 2;

/// Damage within a row, which SQLite's check of pages does not find.
#[derive(Debug, thiserror::Error)]
#[error("row is damaged at byte {0}")]
pub(super) struct DamagedRow(pub(crate) usize);

/// Length of the buffer that is kept from one row to the next.
const KEPT_BYTES: usize = 256 << 10;

/// Checksum of parts. Their lengths are part of it.
pub(super) fn sum_of(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize()
}

/// Checksum of a record, however it is encoded. `head`: a buffer to reuse, as one long part costs less than many.
fn sum_of_record(head: &mut Vec<u8>, id: RecordId, flags: u8, record: &Record) -> u32 {
    head.clear();
    head.push(flags);
    let (hops, fan_out) = (record.hops.into(), record.fan_out.into());
    for number in [id.0, record.at_ms, hops, fan_out, record.topic.len() as u64, record.payload.len() as u64] {
        head.extend_from_slice(&number.to_le_bytes());
    }
    head.extend_from_slice(record.topic.as_bytes());
    head.extend_from_slice(record.function.as_bytes());
    // A zero, which the text of neither contains: where one ends and the other begins.
    head.push(0);
    head.extend_from_slice(record.content_type.as_deref().unwrap_or_default().as_bytes());
    if let Some(trace) = &record.trace {
        head.push(0);
        head.extend_from_slice(&trace.to_bytes());
        head.extend_from_slice(trace.state.as_deref().unwrap_or_default().as_bytes());
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(&record.payload);
    hasher.finalize()
}

fn flags_of(record: &Record, is_refused: bool) -> u8 {
    let content_type = if record.content_type.is_some() { CONTENT_TYPE } else { 0 };
    let refused = if is_refused { REFUSED } else { 0 };
    let unsynced = if record.clock_synced { 0 } else { CLOCK_UNSYNCED };
    let trace = if record.trace.is_some() { TRACE } else { 0 };
    let folded = if record.is_folded { FOLDED } else { 0 };
    (if record.retain { RETAIN } else { 0 }) | content_type | refused | unsynced | trace | folded | FAN_OUT
}

/// Writes rows into a buffer that is reused.
#[derive(Debug)]
pub(super) struct Encoder {
    row: Vec<u8>,
    head: Vec<u8>,
    /// Offset of a string by hash; 0: none (byte 0 is the version).
    strings: [u32; 64],
}

impl Default for Encoder {
    fn default() -> Self {
        Self { row: Vec::new(), head: Vec::new(), strings: [0; 64] }
    }
}

impl Encoder {
    fn start_row(&mut self) {
        self.row.clear();
        self.row.shrink_to(KEPT_BYTES);
        self.row.push(VERSION);
        self.strings = [0; 64];
    }

    fn varint(&mut self, value: u64) {
        write_varint(&mut self.row, value);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.row.extend_from_slice(bytes);
    }

    fn string(&mut self, string: &str) {
        let slot = &mut self.strings[slot(string)];
        let offset = *slot as usize;
        let mut decoder = Decoder { row: &self.row, at: offset };
        if offset != 0 && decoder.literal().is_ok_and(|seen| seen == string.as_bytes()) {
            return self.varint(offset as u64 * 2 + 1);
        }
        // A row is far below 4 GiB: SQLite refuses blobs over 1 GB.
        *slot = self.row.len() as u32;
        self.varint(string.len() as u64 * 2);
        self.row.extend_from_slice(string.as_bytes());
    }

    /// Encodes records of one stream with consecutive ids.
    pub(super) fn segment(&mut self, records: &[StoredRecord]) -> &[u8] {
        self.segment_with(records, |_| false)
    }

    /// Encodes them with those marked that were refused.
    pub(super) fn segment_with(&mut self, records: &[StoredRecord], is_refused: impl Fn(RecordId) -> bool) -> &[u8] {
        self.start_row();
        self.records(records, is_refused, None)
    }

    /// Encodes records of one stream in the order of their ids, which need not be consecutive.
    pub(super) fn thinned_segment(&mut self, records: &[StoredRecord], is_refused: impl Fn(RecordId) -> bool) -> &[u8] {
        self.start_row();
        self.row[0] = THINNED;
        let first_id = records.first().map_or(RecordId(0), |stored| stored.id);
        self.records(records, is_refused, Some(first_id))
    }

    /// Encodes a segment from which all records were dropped.
    pub(super) fn segment_without_records(&mut self, at_ms: u64, last_id: RecordId) -> &[u8] {
        self.start_row();
        self.row[0] = THINNED;
        [0, at_ms, last_id.0].into_iter().for_each(|value| self.varint(value));
        &self.row
    }

    /// `previous`: the first id, if ids are part of the row.
    fn records(
        &mut self,
        records: &[StoredRecord],
        is_refused: impl Fn(RecordId) -> bool,
        mut previous: Option<RecordId>,
    ) -> &[u8] {
        let mut at_ms = records.first().map_or(0, |stored| stored.record.at_ms);
        self.varint(records.len() as u64);
        self.varint(at_ms);
        if let Some(first) = previous {
            self.varint(first.0);
        }
        for StoredRecord { id, record } in records {
            if let Some(previous) = &mut previous {
                self.varint(id.0.saturating_sub(previous.0));
                *previous = *id;
            }
            let flags = flags_of(record, is_refused(*id));
            self.row.push(flags);
            self.varint(record.hops.into());
            self.varint(record.fan_out.into());
            let delta = record.at_ms.wrapping_sub(at_ms) as i64;
            self.varint(((delta << 1) ^ (delta >> 63)) as u64);
            at_ms = record.at_ms;
            self.string(&record.function);
            self.string(&record.topic);
            if let Some(content_type) = &record.content_type {
                self.string(content_type);
            }
            if let Some(trace) = &record.trace {
                self.trace(trace);
            }
            self.bytes(&record.payload);
            let sum = sum_of_record(&mut self.head, *id, flags, record);
            self.row.extend_from_slice(&sum.to_le_bytes());
        }
        &self.row
    }

    fn trace(&mut self, trace: &TraceContext) {
        self.row.extend_from_slice(&trace.to_bytes());
        self.string(trace.state.as_deref().unwrap_or_default());
    }

    fn message(&mut self, message: &Message) {
        let flags = [
            (message.content_type.is_some(), MESSAGE_CONTENT_TYPE),
            (message.clock_synced, MESSAGE_CLOCK_SYNCED),
            (message.retained, MESSAGE_RETAINED),
            (message.response_topic.is_some(), MESSAGE_RESPONSE_TOPIC),
            (message.correlation_data.is_some(), MESSAGE_CORRELATION_DATA),
            (message.trace.is_some(), MESSAGE_TRACE),
        ];
        self.row.push(flags.iter().filter(|(is_set, _)| *is_set).fold(0, |flags, (_, flag)| flags | flag));
        self.string(&message.topic);
        if let Some(content_type) = &message.content_type {
            self.string(content_type);
        }
        self.bytes(&message.payload);
        self.varint(message.properties.len() as u64);
        for (key, value) in &message.properties {
            self.string(key);
            self.string(value);
        }
        self.varint(message.received_at_ms);
        self.varint(message.attempt.into());
        if let Some(topic) = &message.response_topic {
            self.string(topic);
        }
        if let Some(data) = &message.correlation_data {
            self.bytes(data);
        }
        if let Some(trace) = &message.trace {
            self.trace(trace);
        }
    }

    /// Encodes a dead letter without the [`DeadLetterColumns`].
    pub(super) fn dead_letter(&mut self, letter: &DeadLetter) -> &[u8] {
        self.start_row();
        self.string(&letter.version);
        self.string(&letter.failure.detail);
        let Usage { fuel, elapsed_us, memory_bytes, output_bytes } = letter.usage;
        for figure in [fuel, elapsed_us, memory_bytes, output_bytes] {
            self.varint(figure);
        }
        self.message(&letter.message);
        self.end_row(&[
            &letter.at_ms.to_le_bytes(),
            letter.function.as_bytes(),
            letter.failure.code.as_str().as_bytes(),
        ])
    }

    /// Adds the sum of the row and of values that are stored beside it.
    fn end_row(&mut self, columns: &[&[u8]]) -> &[u8] {
        let sum = row_sum(&self.row, columns);
        self.row.extend_from_slice(&sum.to_le_bytes());
        &self.row
    }

    pub(super) fn parked(&mut self, job: &Parked) -> &[u8] {
        self.start_row();
        self.varint(job.due_ms);
        self.varint(job.wait_ms);
        self.string(&job.function);
        self.message(&job.message);
        self.end_row(&[])
    }

    /// Encodes a wake without its id and its function.
    pub(super) fn wake(&mut self, wake: &StoredWake) -> &[u8] {
        self.start_row();
        let shared = if wake.is_shared { WAKE_SHARED } else { 0 };
        let trace = if wake.trace.is_some() { WAKE_TRACE } else { 0 };
        self.row.push(shared | trace | if wake.clock_synced { WAKE_CLOCK_SYNCED } else { 0 });
        self.varint(wake.due_ms);
        self.varint(wake.wait_ms);
        self.string(&wake.name);
        self.string(&wake.topic);
        self.varint(wake.hops.into());
        self.varint(wake.fan_out.into());
        if let Some(trace) = &wake.trace {
            self.trace(trace);
        }
        self.end_row(&[&wake.id.0.to_le_bytes(), wake.function.as_bytes()])
    }

    /// Encodes a watched topic without its id, turn and function.
    pub(super) fn heard(&mut self, heard: &StoredHeard) -> &[u8] {
        self.start_row();
        let (stage, silent_ms) = match heard.stage {
            HeardStage::Speaking => (HEARD_SPEAKING, 0),
            HeardStage::Silent => (HEARD_SILENT, 0),
            HeardStage::Back { silent_ms } => (HEARD_BACK, silent_ms),
        };
        self.row.push(stage);
        self.varint(heard.at_ms);
        self.varint(heard.slack_ms);
        self.varint(silent_ms);
        self.string(&heard.topic);
        self.end_row(&[&heard.id.0.to_le_bytes(), &heard.turn.to_le_bytes(), heard.function.as_bytes()])
    }

    /// Encodes a schedule without its function and its name.
    pub(super) fn schedule(&mut self, schedule: &StoredSchedule) -> &[u8] {
        self.start_row();
        self.string(&schedule.spec);
        self.varint(schedule.seen_ms);
        self.varint(schedule.ran.len() as u64);
        for (first, last) in &schedule.ran {
            self.varint(*first);
            self.varint(last.saturating_sub(*first));
        }
        // The length of the function tells where the name begins.
        let length = (schedule.function.len() as u64).to_le_bytes();
        self.end_row(&[&length, schedule.function.as_bytes(), schedule.name.as_bytes()])
    }
}

fn row_sum(row: &[u8], columns: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(row);
    columns.iter().for_each(|column| hasher.update(column));
    hasher.finalize()
}

pub(super) fn write_varint(row: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        row.push(value as u8 | 0x80);
        value >>= 7;
    }
    row.push(value as u8);
}

/// Cheap hash for a table of 64: names that differ mostly differ in their last bytes.
fn slot(string: &str) -> usize {
    let bytes = string.as_bytes();
    let tail = &bytes[bytes.len().saturating_sub(8)..];
    let hash =
        tail.iter().fold(bytes.len() as u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    (hash >> 32) as usize % 64
}

/// Reads a row from offset `at`.
pub(super) struct Decoder<'a> {
    pub(super) row: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Decoder<'a> {
    /// Returns the version, too.
    fn new(row: &'a [u8]) -> Result<(Self, u8), DamagedRow> {
        match row.first() {
            Some(version @ &(WITHOUT_SUMS | VERSION)) => Ok((Self { row, at: 1 }, *version)),
            _ => Err(DamagedRow(0)),
        }
    }

    fn of_segment(row: &'a [u8]) -> Result<(Self, u8), DamagedRow> {
        match row.first() {
            Some(&THINNED) => Ok((Self { row, at: 1 }, THINNED)),
            _ => Self::new(row),
        }
    }

    /// Checks the sum that [`Encoder::end_row`] added.
    fn checked(row: &'a [u8], columns: &[&[u8]]) -> Result<(Self, u8), DamagedRow> {
        let (decoder, version) = Self::new(row)?;
        if version != WITHOUT_SUMS {
            let (body, sum) = row.split_last_chunk::<SUM_BYTES>().ok_or(DamagedRow(row.len()))?;
            if u32::from_le_bytes(*sum) != row_sum(body, columns) {
                return Err(DamagedRow(body.len()));
            }
        }
        Ok((decoder, version))
    }

    fn byte(&mut self) -> Result<u8, DamagedRow> {
        let byte = *self.row.get(self.at).ok_or(DamagedRow(self.at))?;
        self.at += 1;
        Ok(byte)
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        &self.row[self.at..]
    }

    pub(super) fn varint(&mut self) -> Result<u64, DamagedRow> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DamagedRow(self.at))
    }

    fn varint_u32(&mut self) -> Result<u32, DamagedRow> {
        u32::try_from(self.varint()?).map_err(|_| DamagedRow(self.at))
    }

    fn slice(&mut self, length: u64) -> Result<&'a [u8], DamagedRow> {
        let length = usize::try_from(length).map_err(|_| DamagedRow(self.at))?;
        let end = self.at.checked_add(length).ok_or(DamagedRow(self.at))?;
        let bytes = self.row.get(self.at..end).ok_or(DamagedRow(self.at))?;
        self.at = end;
        Ok(bytes)
    }

    fn literal(&mut self) -> Result<&'a [u8], DamagedRow> {
        match self.varint()? {
            length if length % 2 == 0 => self.slice(length / 2),
            _ => Err(DamagedRow(self.at)),
        }
    }

    fn string(&mut self) -> Result<&'a str, DamagedRow> {
        let start = self.at;
        let bytes = match self.varint()? {
            length if length % 2 == 0 => self.slice(length / 2)?,
            offset => {
                let at = usize::try_from(offset / 2).ok().filter(|at| *at < start).ok_or(DamagedRow(start))?;
                Decoder { row: self.row, at }.literal()?
            }
        };
        std::str::from_utf8(bytes).map_err(|_| DamagedRow(start))
    }

    /// The payload shares the row's memory instead of being copied.
    fn payload(&mut self, row: &Bytes) -> Result<Bytes, DamagedRow> {
        let length = self.varint()?;
        Ok(row.slice_ref(self.slice(length)?))
    }

    fn message(&mut self, row: &Bytes) -> Result<Message, DamagedRow> {
        let flags = self.byte()?;
        let topic = self.string()?.into();
        let content_type = self.string_if(flags & MESSAGE_CONTENT_TYPE)?;
        let payload = self.payload(row)?;
        let properties = (0..self.varint()?)
            .map(|_| Ok((self.string()?.into(), self.string()?.into())))
            .collect::<Result<_, DamagedRow>>()?;
        Ok(Message {
            topic,
            payload,
            content_type,
            properties,
            received_at_ms: self.varint()?,
            clock_synced: flags & MESSAGE_CLOCK_SYNCED != 0,
            attempt: self.varint_u32()?,
            retained: flags & MESSAGE_RETAINED != 0,
            response_topic: self.string_if(flags & MESSAGE_RESPONSE_TOPIC)?,
            correlation_data: match flags & MESSAGE_CORRELATION_DATA {
                0 => None,
                _ => {
                    let length = self.varint()?;
                    Some(self.slice(length)?.into())
                }
            },
            trace: self.trace_if(flags & MESSAGE_TRACE)?,
        })
    }

    fn string_if(&mut self, flag: u8) -> Result<Option<Box<str>>, DamagedRow> {
        if flag == 0 { Ok(None) } else { Ok(Some(self.string()?.into())) }
    }

    fn trace_if(&mut self, flag: u8) -> Result<Option<Arc<TraceContext>>, DamagedRow> {
        if flag == 0 {
            return Ok(None);
        }
        let at = self.at;
        let bytes = self.slice(TraceContext::STORED_BYTES as u64)?.try_into().map_err(|_| DamagedRow(at))?;
        let state = Some(self.string()?).filter(|state| !state.is_empty()).map(Into::into);
        let trace = TraceContext::from_bytes(bytes, state).ok_or(DamagedRow(at))?;
        Ok(Some(Arc::new(trace)))
    }
}

/// Iterator over the records of a segment, in the order of their ids: an error for each that is damaged. Ends early where
/// the rest cannot be told apart.
pub(super) struct Segment<'a> {
    row: &'a Bytes,
    decoder: Decoder<'a>,
    stream: Stream,
    next_id: RecordId,
    /// The last id that was read, if ids are part of the row.
    previous: Option<RecordId>,
    /// Records that were not read.
    left: u64,
    /// The rest cannot be told apart.
    is_torn: bool,
    at_ms: u64,
    /// Shared by consecutive records of one function.
    function: Arc<str>,
    has_sums: bool,
    head: Vec<u8>,
}

/// Record of a segment.
pub(super) struct Entry {
    pub(super) stored: StoredRecord,
    pub(super) refused: bool,
}

/// Time of the first record of a segment; 0 if it is damaged.
pub(super) fn segment_at_ms(row: &[u8]) -> u64 {
    let at_ms = || {
        let (mut decoder, _) = Decoder::of_segment(row)?;
        decoder.varint()?;
        decoder.varint()
    };
    at_ms().unwrap_or(0)
}

impl<'a> Segment<'a> {
    /// `last_id` is the key of the row.
    pub(super) fn decode(row: &'a Bytes, stream: Stream, last_id: RecordId) -> Result<Self, DamagedRow> {
        let (mut decoder, version) = Decoder::of_segment(row)?;
        let is_thinned = version == THINNED;
        let count = decoder.varint()?;
        let at_ms = decoder.varint()?;
        if count > row.len() as u64 / RECORD_MIN_BYTES {
            return Err(DamagedRow(1));
        }
        let next_id = match is_thinned {
            true => RecordId(decoder.varint()?),
            false => (last_id.0 + 1).checked_sub(count).map(RecordId).ok_or(DamagedRow(1))?,
        };
        Ok(Self {
            row,
            decoder,
            stream,
            next_id,
            previous: is_thinned.then_some(next_id),
            left: count,
            is_torn: false,
            at_ms,
            function: "".into(),
            has_sums: version != WITHOUT_SUMS,
            head: Vec::new(),
        })
    }

    /// Before the first record is read.
    pub(super) fn first_id(&self) -> RecordId {
        self.next_id
    }

    pub(super) fn is_thinned(&self) -> bool {
        self.previous.is_some()
    }

    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Offset of the next record in the row.
    pub(super) fn at(&self) -> usize {
        self.decoder.at
    }

    /// Reads a record. Returns whether its sum is right, too.
    fn entry(&mut self) -> Result<(Entry, bool), DamagedRow> {
        let decoder = &mut self.decoder;
        if let Some(previous) = &mut self.previous {
            previous.0 = previous.0.saturating_add(decoder.varint()?);
            self.next_id = *previous;
        }
        let flags = decoder.byte()?;
        let hops = decoder.varint_u32()?;
        let fan_out = if flags & FAN_OUT == 0 { u32::MAX } else { decoder.varint_u32()? };
        let delta = decoder.varint()?;
        self.at_ms = self.at_ms.wrapping_add((delta >> 1) ^ (delta & 1).wrapping_neg());
        let function = decoder.string()?;
        if function != &*self.function {
            self.function = function.into();
        }
        let record = Record {
            stream: self.stream,
            function: self.function.clone(),
            topic: decoder.string()?.into(),
            content_type: decoder.string_if(flags & CONTENT_TYPE)?,
            trace: decoder.trace_if(flags & TRACE)?,
            payload: decoder.payload(self.row)?,
            retain: flags & RETAIN != 0,
            hops,
            fan_out,
            clock_synced: flags & CLOCK_UNSYNCED == 0,
            at_ms: self.at_ms,
            is_folded: flags & FOLDED != 0,
        };
        let id = self.next_id;
        let mut is_right = true;
        if self.has_sums {
            let sum = decoder.slice(SUM_BYTES as u64)?;
            is_right = sum == sum_of_record(&mut self.head, id, flags, &record).to_le_bytes();
        }
        Ok((Entry { stored: StoredRecord { id, record }, refused: flags & REFUSED != 0 }, is_right))
    }
}

impl Iterator for Segment<'_> {
    type Item = Result<Entry, DamagedRow>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 || self.is_torn {
            return None;
        }
        let at = self.decoder.at;
        let entry = match self.entry() {
            Ok((entry, true)) => Ok(entry),
            Ok((_, false)) => Err(DamagedRow(at)),
            Err(damage) => {
                self.is_torn = true;
                Err(damage)
            }
        };
        self.left -= 1;
        self.next_id.0 = self.next_id.0.saturating_add(1);
        Some(entry)
    }
}

/// Columns of a dead letter that are not in its body.
pub(super) struct DeadLetterColumns {
    pub(super) function: Arc<str>,
    pub(super) code: FailureCode,
    pub(super) at_ms: u64,
}

pub(super) fn dead_letter(columns: DeadLetterColumns, body: &Bytes) -> Result<DeadLetter, DamagedRow> {
    let DeadLetterColumns { function, code, at_ms } = columns;
    let beside = [&at_ms.to_le_bytes()[..], function.as_bytes(), code.as_str().as_bytes()];
    let (mut decoder, _) = Decoder::checked(body, &beside)?;
    Ok(DeadLetter {
        function,
        version: decoder.string()?.into(),
        failure: Failure { code, detail: decoder.string()?.into() },
        usage: Usage {
            fuel: decoder.varint()?,
            elapsed_us: decoder.varint()?,
            memory_bytes: decoder.varint()?,
            output_bytes: decoder.varint()?,
        },
        message: decoder.message(body)?.into(),
        at_ms,
    })
}

pub(super) fn parked(id: ParkedId, body: &Bytes) -> Result<Parked, DamagedRow> {
    let (mut decoder, version) = Decoder::checked(body, &[])?;
    let due_ms = decoder.varint()?;
    // Unknown: as long as any retry may wait.
    let wait_ms = if version == WITHOUT_SUMS { u64::MAX } else { decoder.varint()? };
    let function = decoder.string()?.into();
    Ok(Parked { id, due_ms, wait_ms, function, message: decoder.message(body)?.into() })
}

pub(super) fn wake(id: WakeId, function: &str, body: &Bytes) -> Result<StoredWake, DamagedRow> {
    let (mut decoder, _) = Decoder::checked(body, &[&id.0.to_le_bytes(), function.as_bytes()])?;
    let flags = decoder.byte()?;
    Ok(StoredWake {
        id,
        function: function.into(),
        is_shared: flags & WAKE_SHARED != 0,
        clock_synced: flags & WAKE_CLOCK_SYNCED != 0,
        due_ms: decoder.varint()?,
        wait_ms: decoder.varint()?,
        name: decoder.string()?.into(),
        topic: decoder.string()?.into(),
        hops: decoder.varint_u32()?,
        fan_out: decoder.varint_u32()?,
        trace: decoder.trace_if(flags & WAKE_TRACE)?,
    })
}

pub(super) fn heard(id: HeardId, turn: u64, function: &str, body: &Bytes) -> Result<StoredHeard, DamagedRow> {
    let beside = [&id.0.to_le_bytes()[..], &turn.to_le_bytes(), function.as_bytes()];
    let (mut decoder, _) = Decoder::checked(body, &beside)?;
    let stage = decoder.byte()?;
    let (at_ms, slack_ms, silent_ms) = (decoder.varint()?, decoder.varint()?, decoder.varint()?);
    let stage = match stage {
        HEARD_SPEAKING => HeardStage::Speaking,
        HEARD_SILENT => HeardStage::Silent,
        HEARD_BACK => HeardStage::Back { silent_ms },
        _ => return Err(DamagedRow(1)),
    };
    Ok(StoredHeard { id, turn, function: function.into(), topic: decoder.string()?.into(), at_ms, slack_ms, stage })
}

/// Ranges of a schedule at most.
const MAX_RANGES: u64 = 64;

pub(super) fn schedule(function: &str, name: &str, body: &Bytes) -> Result<StoredSchedule, DamagedRow> {
    let length = (function.len() as u64).to_le_bytes();
    let (mut decoder, _) = Decoder::checked(body, &[&length, function.as_bytes(), name.as_bytes()])?;
    let (spec, seen_ms) = (decoder.string()?.into(), decoder.varint()?);
    let ranges = decoder.varint()?;
    if ranges > MAX_RANGES {
        return Err(DamagedRow(decoder.at));
    }
    let mut ran = Vec::new();
    for _ in 0..ranges {
        let (first, length) = (decoder.varint()?, decoder.varint()?);
        ran.push((first, first.saturating_add(length)));
    }
    Ok(StoredSchedule { function: function.into(), name: name.into(), spec, seen_ms, ran })
}

/// Reads a row as each of the kinds that the database holds.
#[cfg(feature = "fuzzing")]
pub(super) fn read(row: &Bytes) {
    if let Ok(segment) = Segment::decode(row, Stream::DATA, RecordId(1000)) {
        // A count of records that the row does not hold ends with the row.
        let entries = segment.map_while(Result::ok).count();
        assert!(entries <= row.len(), "{entries} records in {} bytes", row.len());
    }
    let columns = DeadLetterColumns { function: "f".into(), code: FailureCode::Rejected, at_ms: 0 };
    let _ = dead_letter(columns, row);
    let _ = parked(ParkedId(1), row);
    let _ = wake(WakeId(1), "f", row);
    let _ = heard(HeardId(1), 1, "f", row);
    let _ = schedule("f", "s", row);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn message() -> impl Strategy<Value = Message> {
        (
            "[a-z/]{1,9}",
            vec(any::<u8>(), 0..40),
            option::of("[a-z]{0,9}"),
            vec(("[ab]{0,5}", "[ab]{0,5}"), 0..4),
            any::<(u64, bool, u32, bool)>(),
            (option::of("[ab]{0,5}"), option::of(vec(any::<u8>(), 0..9))),
        )
            .prop_map(
                |(
                    topic,
                    payload,
                    content_type,
                    properties,
                    (received_at_ms, clock_synced, attempt, retained),
                    answer,
                )| {
                    Message {
                        topic: topic.into(),
                        payload: payload.into(),
                        content_type: content_type.map(Into::into),
                        properties: properties.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
                        received_at_ms,
                        clock_synced,
                        attempt,
                        retained,
                        response_topic: answer.0.map(Into::into),
                        correlation_data: answer.1.map(Into::into),
                        trace: (attempt % 3 == 0).then(|| trace(attempt.into())),
                    }
                },
            )
    }

    fn trace(number: u64) -> Arc<TraceContext> {
        let parent = format!("00-{:032x}-{:016x}-{:02x}", number + 1, number + 7, number % 4);
        let mut properties = vec![("traceparent", &*parent)];
        properties.extend(number.is_multiple_of(2).then_some(("tracestate", "a=1,b=2")));
        TraceContext::of(&properties).unwrap().into()
    }

    fn record() -> impl Strategy<Value = Record> {
        ("[ab]{0,5}", "[ab/]{1,5}", vec(any::<u8>(), 0..40), option::of("[ab]{0,5}"), any::<(bool, u32, u64)>())
            .prop_map(|(function, topic, payload, content_type, (retain, hops, at_ms))| Record {
                stream: Stream::DATA,
                function: function.into(),
                topic: topic.into(),
                payload: payload.into(),
                content_type: content_type.map(Into::into),
                retain,
                hops,
                fan_out: hops / 3,
                clock_synced: hops % 2 == 0,
                at_ms,
                trace: (hops % 5 == 0).then(|| trace(hops.into())),
                is_folded: hops % 7 == 0,
            })
    }

    proptest! {
        #[test]
        fn a_segment_reads_as_it_was_written(records in vec(record(), 1..40), first_id in 1..u64::MAX / 2) {
            let stored: Vec<_> =
                (first_id..).zip(records).map(|(id, record)| StoredRecord { id: RecordId(id), record }).collect();
            let last_id = stored.last().unwrap().id;
            let row = Bytes::copy_from_slice(Encoder::default().segment(&stored));
            let read: Vec<_> =
                Segment::decode(&row, Stream::DATA, last_id).unwrap().map(|entry| entry.unwrap()).collect();
            prop_assert!(read.iter().all(|entry| !entry.refused));
            prop_assert!(read.iter().map(|entry| &entry.stored).eq(&stored));

            let sparse: Vec<_> =
                stored.iter().enumerate().filter(|(n, _)| n % 3 != 1).map(|(_, stored)| stored.clone()).collect();
            let row = Bytes::copy_from_slice(Encoder::default().thinned_segment(&sparse, |_| false));
            let thinned: Vec<_> =
                Segment::decode(&row, Stream::DATA, last_id).unwrap().map(|entry| entry.unwrap().stored).collect();
            prop_assert_eq!(thinned, sparse);

            let first_id = read[0].stored.id;
            let row = Bytes::copy_from_slice(Encoder::default().segment_with(&stored, |id| id == first_id));
            let refused: Vec<_> =
                Segment::decode(&row, Stream::DATA, last_id).unwrap().map(|entry| entry.unwrap().refused).collect();
            prop_assert!(refused[0] && !refused[1..].contains(&true));
        }

        #[test]
        fn a_parked_job_reads_as_it_was_written(message in message(), due_ms: u64, wait_ms: u64) {
            let job = Parked { id: ParkedId(7), function: "f".into(), message: message.into(), due_ms, wait_ms };
            let row = Bytes::copy_from_slice(Encoder::default().parked(&job));
            prop_assert_eq!(parked(ParkedId(7), &row).unwrap(), job);
        }

        #[test]
        fn a_dead_letter_reads_as_it_was_written(message in message(), figures: [u64; 4]) {
            let [fuel, elapsed_us, memory_bytes, output_bytes] = figures;
            let letter = DeadLetter {
                function: "f".into(),
                version: "1.0.0".into(),
                message: message.into(),
                failure: Failure { code: FailureCode::Trap, detail: "unreachable".into() },
                usage: Usage { fuel, elapsed_us, memory_bytes, output_bytes },
                at_ms: 5,
            };
            let row = Bytes::copy_from_slice(Encoder::default().dead_letter(&letter));
            let columns = DeadLetterColumns { function: "f".into(), code: FailureCode::Trap, at_ms: 5 };
            prop_assert_eq!(dead_letter(columns, &row).unwrap(), letter);
        }

        #[test]
        fn a_damaged_row_is_an_error_and_never_a_panic(
            mut row in vec(any::<u8>(), 0..60), last_id in 0..100u64, version in 1..=3u8
        ) {
            if let Some(first) = row.first_mut() {
                *first = version;
            }
            let row = Bytes::from(row);
            if let Ok(segment) = Segment::decode(&row, Stream::ALERT, RecordId(last_id)) {
                segment.for_each(drop);
            }
            let _ = parked(ParkedId(1), &row);
            let columns = DeadLetterColumns { function: "f".into(), code: FailureCode::Trap, at_ms: 5 };
            let _ = dead_letter(columns, &row);
        }
    }

    proptest! {
        /// Names that other records refer to included.
        #[test]
        fn a_flipped_bit_of_a_segment_makes_errors_and_never_another_record(
            records in vec(record(), 1..8), first_id in 1..u64::MAX / 2, at: prop::sample::Index, is_thinned: bool
        ) {
            let stored: Vec<_> =
                (first_id..).zip(records).map(|(id, record)| StoredRecord { id: RecordId(id), record }).collect();
            let last_id = stored.last().unwrap().id;
            let mut encoder = Encoder::default();
            let row = if is_thinned { encoder.thinned_segment(&stored, |_| false) } else { encoder.segment(&stored) };
            let mut row = row.to_vec();
            let bit = at.index(row.len() * 8);
            // The version says whether there are sums.
            prop_assume!(bit >= 8);
            row[bit / 8] ^= 1 << (bit % 8);
            let row = Bytes::from(row);
            let read = Segment::decode(&row, Stream::DATA, last_id).into_iter().flatten();
            let intact: Vec<_> = read.flatten().map(|entry| (entry.stored, entry.refused)).collect();
            // The number of records and the time of the first may be those of no record.
            prop_assert!(intact.len() <= stored.len());
            for (record, refused) in &intact {
                prop_assert!(stored.contains(record) && !refused, "{:?} was never written", record);
            }
        }

        #[test]
        fn a_flipped_bit_of_a_dead_letter_or_parked_job_is_an_error(message in message(), at: prop::sample::Index) {
            let message = Arc::new(message);
            let waiting = Arc::clone(&message);
            let job = Parked { id: ParkedId(7), function: "f".into(), message: waiting, due_ms: 1, wait_ms: 2 };
            let mut row = Encoder::default().parked(&job).to_vec();
            let bit = 8 + at.index((row.len() - 1) * 8);
            row[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(parked(ParkedId(7), &row.into()).is_err());

            let failure = Failure { code: FailureCode::Trap, detail: "unreachable".into() };
            let usage = Usage { fuel: 1, elapsed_us: 2, memory_bytes: 3, output_bytes: 4 };
            let (function, version) = (Arc::from("f"), Arc::from("1.0.0"));
            let letter = DeadLetter { function, version, message, failure, usage, at_ms: 5 };
            let good = Bytes::copy_from_slice(Encoder::default().dead_letter(&letter));
            let columns = |function: &str, at_ms| DeadLetterColumns { function: function.into(), code: FailureCode::Trap, at_ms };
            prop_assert!(dead_letter(columns("g", 5), &good).is_err() && dead_letter(columns("f", 4), &good).is_err());
            let mut row = good.to_vec();
            let bit = 8 + at.index((row.len() - 1) * 8);
            row[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(dead_letter(columns("f", 5), &row.into()).is_err());
        }
    }

    /// Rows of layout 1, before the fields `retained`, `response_topic` and `correlation_data`.
    #[test]
    fn a_message_without_the_later_fields_is_read() {
        let row = Bytes::from_static(b"\x01\x05\x02f\x03\x06a/b\x02x\x02hi\x01\x02k\x02v\x09\x02");
        let message = Message {
            topic: "a/b".into(),
            payload: Bytes::from_static(b"hi"),
            content_type: Some("x".into()),
            properties: vec![("k".into(), "v".into())],
            received_at_ms: 9,
            clock_synced: true,
            attempt: 2,
            retained: false,
            response_topic: None,
            correlation_data: None,
            trace: None,
        };
        let message = message.into();
        let job = Parked { id: ParkedId(7), function: "f".into(), message, due_ms: 5, wait_ms: u64::MAX };
        assert_eq!(parked(ParkedId(7), &row).unwrap(), job);
    }

    #[test]
    fn a_segment_of_layout_1_is_read() {
        let row = Bytes::from_static(&[1, 1, 7, 0, 1, 0, 2, b'f', 2, b't', 1, b'p']);
        let mut segment = Segment::decode(&row, Stream::ALERT, RecordId(4)).unwrap();
        let entry = segment.next().unwrap().unwrap();
        assert_eq!((entry.stored.id, &*entry.stored.record.topic, entry.stored.record.at_ms), (RecordId(4), "t", 7));
    }

    #[test]
    fn names_are_written_once_in_a_segment() {
        let record = Record {
            stream: Stream::DATA,
            function: "threshold-alert".into(),
            topic: "sensors/cellar/temperature".into(),
            payload: Bytes::from_static(&[0; 200]),
            content_type: None,
            retain: false,
            hops: 1,
            fan_out: 9,
            clock_synced: true,
            at_ms: 1_700_000_000_000,
            trace: None,
            is_folded: false,
        };
        let stored: Vec<_> = (1..=256).map(|id| StoredRecord { id: RecordId(id), record: record.clone() }).collect();
        let mut encoder = Encoder::default();
        assert!(encoder.segment(&stored).len() <= 256 * 214);
    }
}
