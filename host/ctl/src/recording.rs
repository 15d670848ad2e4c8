//! Reads recordings, a line at a time: they may be larger than memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use sedge_core::manifest::Manifest;
use sedge_core::message::Message;
use sedge_core::recording::{
    self, CONTRACT, Data, Drawn, End, FORMAT, Header, Line, MAX_LINE_BYTES, RecordedVersion, RefusedOutcome, Seal,
};
use sedge_core::text::printable;
use sedge_sandbox::ScopeState;

const BUFFER_BYTES: usize = 256 << 10;
const OUTCOME: &[u8] = b"{\"outcome\":";

pub(crate) struct Reader<R = BufReader<File>> {
    input: R,
    path: PathBuf,
    pub(crate) header: Header,
    seal: Seal,
    line: Vec<u8>,
    /// Of the file, from 1.
    line_number: u64,
    is_cut: bool,
    pub(crate) bytes_read: u64,
    /// The latest run that was read.
    pub(crate) run: RecordedRun,
}

/// A run as it was recorded.
#[derive(Default)]
pub(crate) struct RecordedRun {
    /// State of its scope before it, if it is the first of that scope.
    pub(crate) state: Option<(String, ScopeState)>,
    pub(crate) message: Option<Message>,
    pub(crate) drawn: Option<Drawn>,
    /// It cannot be repeated.
    pub(crate) is_unsure: bool,
    pub(crate) refused: Option<RefusedOutcome>,
    /// The line of the outcome, without its line feed.
    pub(crate) outcome: Vec<u8>,
}

/// What was read.
pub(crate) enum Event {
    /// Version or settings of the runs that follow.
    Version(Box<RecordedVersion>),
    /// [`Reader::run`] has a run.
    Run,
    End(End),
}

impl Reader {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("failed to read {}", path.display()))?;
        Self::new(path, BufReader::with_capacity(BUFFER_BYTES, file))
    }
}

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(path: &Path, mut input: R) -> anyhow::Result<Self> {
        let mut line = Vec::new();
        let read = read_line(&mut input, &mut line).with_context(|| path.display().to_string())?;
        let not_one = || {
            format!(
                "{} is not a recording of sedge: its first line is another; make one with `sedge record`",
                path.display()
            )
        };
        let first: serde_json::Value = serde_json::from_slice(&line).ok().with_context(not_one)?;
        // The format of another number may have another header.
        let header = first.get("recording").with_context(not_one)?;
        match header.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => bail!(
                "{} has format {format}, and this sedge reads format {FORMAT}: use the version of sedge that wrote it",
                path.display()
            ),
            None => bail!(not_one()),
        }
        let header: Header = serde_json::from_value(header.clone()).ok().with_context(not_one)?;
        if header.contract != CONTRACT {
            bail!(
                "{} holds messages of the contract {}, and this sedge runs functions by {CONTRACT}: use the version of \
                 sedge that the board has",
                path.display(),
                printable(&header.contract)
            );
        }
        let mut seal = Seal::default();
        seal.add(&line);
        let path = path.to_owned();
        Ok(Self {
            input,
            path,
            header,
            seal,
            line,
            line_number: 1,
            is_cut: false,
            bytes_read: read,
            run: RecordedRun::default(),
        })
    }

    /// Fails if the function is another, or keeps its state otherwise.
    pub(crate) fn check(&self, manifest: &Manifest) -> anyhow::Result<()> {
        let header = &self.header;
        if *manifest.name != *header.function {
            bail!(
                "the recording is of {}, and function.toml names {}: name the folder of that function",
                printable(&header.function),
                manifest.name
            );
        }
        let scope = recording::scope_name(manifest.state);
        if header.state != scope {
            bail!(
                "the recording has the state of state = \"{}\", and function.toml has state = \"{scope}\": what it holds cannot be \
                 given to this version",
                printable(&header.state)
            );
        }
        Ok(())
    }

    /// Whether reading failed because the file ends too early.
    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Runs that were read.
    pub(crate) fn runs(&self) -> u64 {
        self.seal.runs
    }

    /// The next version, run or end. After the end there is nothing more to read.
    pub(crate) fn next(&mut self) -> anyhow::Result<Event> {
        self.run = RecordedRun { outcome: std::mem::take(&mut self.run.outcome), ..RecordedRun::default() };
        loop {
            self.line.clear();
            self.line_number += 1;
            let read = read_line(&mut self.input, &mut self.line).with_context(|| self.at())?;
            self.bytes_read += read;
            if !self.line.ends_with(b"\n") {
                self.is_cut = true;
                bail!(
                    "{} was cut: it ends after {} messages without its last line; fetch or copy it again",
                    self.path.display(),
                    self.seal.runs
                );
            }
            if self.line.starts_with(OUTCOME) {
                if self.run.message.is_none() {
                    bail!(self.damaged("an outcome without a message"));
                }
                self.seal.add(&self.line);
                self.seal.runs += 1;
                self.run.outcome.clear();
                self.run.outcome.extend_from_slice(&self.line[..self.line.len() - 1]);
                return Ok(Event::Run);
            }
            let line: Line<'_> = match serde_json::from_slice(&self.line) {
                Ok(line) => line,
                Err(error) => bail!(self.damaged(&error.to_string())),
            };
            match line {
                Line::Version(version) => {
                    let version = Box::new(version);
                    self.seal.add(&self.line);
                    return Ok(Event::Version(version));
                }
                Line::State(state) => {
                    let entries = state.entries.into_iter();
                    let entries = entries.map(|(key, Data(value))| (key.into(), value.into_owned().into()));
                    let topic = state.topic.map(std::borrow::Cow::into_owned).unwrap_or_default();
                    self.run.state = Some((topic, ScopeState::from_entries(entries)));
                }
                Line::Message(message) => self.run.message = Some(message.into_message()),
                Line::Drawn(drawn) => self.run.drawn = Some(drawn.into_drawn()),
                Line::Unsure(_) => self.run.is_unsure = true,
                Line::Refused(refused) => self.run.refused = Some(refused),
                Line::End(end) => return self.check_end(end).map(Event::End),
                Line::Recording(_) | Line::Outcome(_) => bail!(self.damaged("out of its place")),
            }
            self.seal.add(&self.line);
        }
    }

    fn check_end(&mut self, end: End) -> anyhow::Result<End> {
        if end != self.seal.end(end.why) {
            bail!(
                "{} was changed after it was recorded: its lines are not those that its last line counts and hashes; take the \
                 original, or record again",
                self.path.display()
            );
        }
        if read_line(&mut self.input, &mut self.line)? > 0 {
            bail!(
                "{} was changed after it was recorded: something follows its last line; take the original",
                self.path.display()
            );
        }
        Ok(end)
    }

    fn at(&self) -> String {
        format!("{}:{}", self.path.display(), self.line_number)
    }

    fn damaged(&self, why: &str) -> String {
        format!("{}: not a line of a recording ({why}): the file was changed or damaged; take the original", self.at())
    }
}

/// Reads a line, with its line feed. Returns the number of bytes.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> anyhow::Result<u64> {
    let read = input.take(MAX_LINE_BYTES as u64).read_until(b'\n', line).context("failed to read the recording")?;
    if read == MAX_LINE_BYTES {
        bail!("a line of more than {MAX_LINE_BYTES} bytes: this is not a recording of sedge");
    }
    Ok(read as u64)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sedge_core::manifest::StateScope;
    use sedge_core::message::{Digest, Outcome, StateGrowth, Usage, Verdict};
    use sedge_core::recording::{Encoder, RecordedRun as Given, Why, append_run};

    use super::*;

    fn recording(runs: u64) -> Vec<u8> {
        let mut encoder = Encoder::default();
        encoder.header(&Header::new("pump-3", "sedge", "warm", StateScope::Topic, 5));
        let (config, digest) = (std::collections::BTreeMap::new(), Digest([1; 32]));
        let version = RecordedVersion::new("1", digest, &config, &sedge_core::settings::Resolved::default());
        let (writes, growth, usage) = (Vec::new(), StateGrowth::default(), Usage::default());
        let outcome = Outcome { verdict: Verdict::Done(Vec::new()), writes, growth, usage, drawn: None };
        let entries = [("count".into(), Bytes::from_static(&[255]))];
        for run in 0..runs {
            let message = Message::new("a", Bytes::from(run.to_string()), run, true);
            let state = (run == 0).then_some((Some("a"), &entries[..]));
            let given = Given {
                version: (run == 0).then_some(&version),
                state,
                message: &message,
                drawn: None,
                is_unsure: false,
                refused: None,
                outcome: &outcome,
            };
            let mut lines = Vec::new();
            append_run(&given, &mut lines);
            encoder.copy(&lines, true);
        }
        encoder.end(Why::Time);
        encoder.lines
    }

    /// Reads all of it. Returns the payloads.
    fn read(bytes: &[u8]) -> anyhow::Result<Vec<Bytes>> {
        let mut reader = Reader::new(Path::new("night.rec"), bytes)?;
        let mut payloads = Vec::new();
        loop {
            match reader.next()? {
                Event::Version(_) => {}
                Event::Run => payloads.push(reader.run.message.take().unwrap().payload),
                Event::End(end) => {
                    assert_eq!(end.runs, payloads.len() as u64);
                    return Ok(payloads);
                }
            }
        }
    }

    fn error(bytes: &[u8]) -> String {
        format!("{:#}", read(bytes).unwrap_err())
    }

    #[test]
    fn runs_come_as_they_were_written() {
        assert_eq!(read(&recording(3)).unwrap(), ["0", "1", "2"]);
        assert!(read(&recording(0)).unwrap().is_empty());
        let file = recording(1);
        let mut reader = Reader::new(Path::new("night.rec"), &*file).unwrap();
        reader.next().map(drop).unwrap();
        reader.next().map(drop).unwrap();
        let (topic, state) = reader.run.state.take().unwrap();
        assert_eq!((&*topic, state.entries().next().unwrap().1), ("a", &Bytes::from_static(&[255])));
    }

    #[test]
    fn a_cut_file_is_noticed_at_every_byte() {
        let file = recording(2);
        for length in 1..file.len() {
            let error = error(&file[..length]);
            assert!(error.contains("was cut") || error.contains("not a recording"), "{length}: {error}");
        }
        assert!(error(&file[..file.len() - 1]).contains("after 2 messages"), "{}", error(&file[..file.len() - 1]));
    }

    #[test]
    fn a_changed_file_is_noticed_whatever_was_changed() {
        let file = String::from_utf8(recording(3)).unwrap();
        for (from, to) in
            [("\"payload\":\"1\"", "\"payload\":\"2\""), ("\"runs\":3", "\"runs\":2"), ("\"fuel\":0", "\"fuel\":1")]
        {
            let changed = file.replacen(from, to, 1);
            assert_ne!(changed, file);
            assert!(error(changed.as_bytes()).contains("was changed after it was recorded"), "{from}");
        }
        let lines: Vec<&str> = file.split_inclusive('\n').collect();
        let without = [&lines[..3], &lines[5..]].concat().concat();
        assert!(error(without.as_bytes()).contains("night.rec was changed"), "{}", error(without.as_bytes()));
        assert!(error(format!("{file}{{}}\n").as_bytes()).contains("something follows"));
        assert!(error(file.replacen("\"message\"", "\"massage\"", 1).as_bytes()).contains("night.rec:4: not a line"));
    }

    #[test]
    fn another_format_and_another_contract_are_refused_with_the_fix() {
        let file = String::from_utf8(recording(1)).unwrap();
        let other = error(file.replacen("\"format\":1", "\"format\":2", 1).as_bytes());
        assert_eq!(
            other,
            "night.rec has format 2, and this sedge reads format 1: use the version of sedge that wrote it"
        );
        let other = error(file.replacen("function@0.2.0", "function@0.9.0", 1).as_bytes());
        assert!(
            other.contains("sedge:function@0.9.0") && other.contains("use the version of sedge that the board has")
        );
        for text in ["", "\n", "{}\n", "not one", "{\"recording\":{}}\n"] {
            assert!(error(text.as_bytes()).contains("make one with `sedge record`"), "{text:?}");
        }
    }
}
