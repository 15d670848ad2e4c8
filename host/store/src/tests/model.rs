//! Random histories against a model of vectors and maps.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::testing::*;
use sedge_core::message::StateWrite;
use sedge_core::store::{BatchNo, Commit, RecordId, StoreEvent, StoreRequest, StoredRecord};
use sedge_core::stream::Stream;

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Change>),
    /// Sends without waiting.
    Start(Vec<Change>),
    /// Delivers this percentage of the records that wait.
    Deliver(usize, u64),
    /// Closes and reopens.
    Restart,
    /// Drops both ends. `copied`: continues with a copy of the files as of that moment.
    Crash {
        copied: bool,
    },
}

#[derive(Clone, Debug)]
enum Change {
    Record(usize, Vec<u8>),
    Set(u8, u8, u8),
    Remove(u8, u8),
    Fingerprint,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0..3usize, vec(any::<u8>(), 0..300)).prop_map(|(stream, payload)| Change::Record(stream, payload)),
        3 => (0..3u8, 0..4u8, any::<u8>()).prop_map(|(scope, key, value)| Change::Set(scope, key, value)),
        1 => (0..3u8, 0..4u8).prop_map(|(scope, key)| Change::Remove(scope, key)),
        2 => Just(Change::Fingerprint),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => vec(change(), 1..12).prop_map(Step::Commit),
        4 => vec(change(), 1..12).prop_map(Step::Start),
        3 => (0..3usize, 0..=100u64).prop_map(|(stream, share)| Step::Deliver(stream, share)),
        1 => Just(Step::Restart),
        2 => any::<bool>().prop_map(|copied| Step::Crash { copied }),
    ]
}

/// Expected content of the disk.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    outbox: [Vec<(u64, Vec<u8>)>; 3],
    last: [u64; 3],
    state: BTreeMap<(u8, String), Bytes>,
    /// Digests of deliveries, oldest first, and whether they must be on disk. Those without effect are written with the
    /// next one that has an effect.
    window: Vec<(u64, bool)>,
    digests: u64,
}

impl Model {
    fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Record(n, payload) => {
                    self.last[*n] += 1;
                    self.outbox[*n].push((self.last[*n], payload.clone()));
                }
                Change::Set(scope, key, value) => {
                    self.state.insert((*scope, key.to_string()), vec![*value].into());
                }
                Change::Remove(scope, key) => {
                    self.state.remove(&(*scope, key.to_string()));
                }
                Change::Fingerprint => {
                    self.digests += 1;
                    self.window.push((self.digests, false));
                }
            }
        }
        if changes.iter().any(|change| !matches!(change, Change::Fingerprint)) {
            self.window.iter_mut().for_each(|(_, on_disk)| *on_disk = true);
        }
    }

    /// Forgets what was not on disk at a restart.
    fn reopened(&mut self, found: &Self) {
        self.window = found.window.clone();
        self.outbox = found.outbox.clone();
    }

    /// Returns one commit per change, in order.
    fn commits(&self, changes: &[Change]) -> Vec<Commit> {
        let mut digest = self.digests;
        let commit = |change: &Change| match change {
            Change::Record(n, payload) => records(vec![record(Stream::FIRST[*n], payload.clone())]),
            Change::Set(scope, key, value) => state(*scope, *key, Some(vec![*value].into())),
            Change::Remove(scope, key) => state(*scope, *key, None),
            Change::Fingerprint => {
                digest += 1;
                delivery(digest)
            }
        };
        changes.iter().map(commit).collect()
    }
}

fn state(scope: u8, key: u8, value: Option<Bytes>) -> Commit {
    let write = StateWrite { key: key.to_string().into(), value };
    Commit { state: vec![(scope_of(scope), vec![write])], ..Commit::default() }
}

fn scope_of(n: u8) -> sedge_core::message::Scope {
    if n == 0 { scope(None) } else { scope(Some(&format!("topic/{n}"))) }
}

/// Reads the content of the store by its requests.
fn read_back(rig: &mut Rig) -> Model {
    let mut model = Model { last: Stream::FIRST.map(|stream| rig.recovered.last[stream].0), ..Model::default() };
    for stream in Stream::FIRST {
        let stored = rig.read_all(stream);
        model.outbox[stream.index()] =
            stored.into_iter().map(|StoredRecord { id, record }| (id.0, record.payload.to_vec())).collect();
    }
    for n in 0..3 {
        model.state.extend(rig.state(&scope_of(n)).into_iter().map(|(key, value)| ((n, key), value)));
    }
    model.window = rig.recovered.window.iter().map(|fingerprint| (fingerprint.digest, true)).collect();
    model
}

/// Compares the store with a model. Watermarks may lag, so that delivered records are still there.
fn check(found: &Model, expected: &Model) -> Result<(), String> {
    for n in 0..3 {
        let lag = found.outbox[n].len().saturating_sub(expected.outbox[n].len());
        if found.outbox[n][lag..] != expected.outbox[n] {
            return Err(format!("outbox {n}: {:?} instead of {:?}", found.outbox[n], expected.outbox[n]));
        }
    }
    if found.state != expected.state {
        return Err(format!("state {:?} instead of {:?}", found.state, expected.state));
    }
    if found.last != expected.last {
        return Err(format!("last {:?} instead of {:?}", found.last, expected.last));
    }
    let last = expected.window.len().saturating_sub(RECEIVE_MAXIMUM.into());
    let must_be_known = expected.window[last..].iter().filter(|(_, on_disk)| *on_disk);
    let mut rest = expected.window.iter();
    if !must_be_known.clone().all(|known| found.window.contains(known))
        || !found.window.iter().all(|(digest, _)| rest.any(|(expected, _)| expected == digest))
    {
        return Err(format!("window {:?} instead of {:?}", found.window, expected.window));
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) {
    // Like a power cut between two writes to the log, as no checkpoint is running. What is read while the log is written would
    // be of several times at once: two readings are equal if nothing was written between them.
    for name in ["sedge.db", "sedge.db-wal"] {
        let Ok(mut content) = fs::read(from.join(name)) else { continue };
        loop {
            let again = fs::read(from.join(name)).unwrap();
            if again == content {
                break;
            }
            content = again;
        }
        fs::write(to.join(name), content).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn commits_survive_restarts_and_crashes(steps in vec(step(), 1..40)) {
        let mut dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(dir.path());
        let mut model = Model::default();
        // The model after each request that is not known to be on disk.
        let mut under_way: Vec<(u64, Model)> = Vec::new();
        let mut on_disk = Model::default();
        for step in steps {
            match step {
                Step::Commit(changes) => {
                    let commits = model.commits(&changes);
                    model.apply(&changes);
                    rig.commit(commits);
                    under_way.clear();
                    on_disk = model.clone();
                }
                Step::Start(changes) => {
                    let commits = model.commits(&changes);
                    model.apply(&changes);
                    let seq = rig.start(commits);
                    under_way.push((seq, model.clone()));
                }
                Step::Deliver(n, share) => {
                    // Only records known to be committed can be delivered.
                    let known = on_disk.outbox[n].len() as u64;
                    let count = (known * share / 100) as usize;
                    if let Some((through, _)) = count.checked_sub(1).map(|at| on_disk.outbox[n][at].clone()) {
                        rig.send(StoreRequest::Delivered { stream: Stream::FIRST[n], through: RecordId(through) });
                        for model in under_way.iter_mut().map(|(_, model)| model).chain([&mut model, &mut on_disk]) {
                            model.outbox[n].retain(|(id, _)| *id > through);
                        }
                    }
                }
                Step::Restart => {
                    rig.close();
                    rig = Rig::open(dir.path());
                    let found = read_back(&mut rig);
                    prop_assert_eq!(check(&found, &model), Ok(()));
                    prop_assert_eq!(&found.outbox, &model.outbox, "closing writes the watermarks");
                    model.reopened(&found);
                    (under_way, on_disk) = (Vec::new(), model.clone());
                }
                Step::Crash { copied } => {
                    while let Some(event) = rig.events.try_recv() {
                        if let StoreEvent::Committed { batch: BatchNo(seq), .. } = event {
                            let done = under_way.iter().take_while(|(sent, _)| *sent <= seq).count();
                            under_way.drain(..done).for_each(|(_, model)| on_disk = model);
                        }
                    }
                    if copied {
                        let after = tempfile::tempdir().unwrap();
                        copy(dir.path(), after.path());
                        drop(rig);
                        dir = after;
                    } else {
                        drop(rig);
                    }
                    rig = Rig::open(dir.path());
                    let found = read_back(&mut rig);
                    let history: Vec<_> =
                        [&on_disk].into_iter().chain(under_way.iter().map(|(_, model)| model)).cloned().collect();
                    let matching = history.iter().rev().find(|model| check(&found, model).is_ok());
                    prop_assert!(matching.is_some(), "{:?} is none of {:?}", found, history);
                    // Digests are not reused.
                    let digests = model.digests;
                    model = matching.unwrap().clone();
                    model.digests = digests;
                    model.reopened(&found);
                    (under_way, on_disk) = (Vec::new(), model.clone());
                }
            }
        }
        rig.close();
    }

    #[test]
    fn a_torn_log_loses_only_the_last_commits(
        batches in vec(vec(change(), 1..8), 2..12), cut in 0..=1000u64
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(dir.path());
        let mut history = vec![Model::default()];
        for changes in &batches {
            let mut model = history.last().unwrap().clone();
            rig.commit(model.commits(changes));
            model.apply(changes);
            history.push(model);
        }
        let after = tempfile::tempdir().unwrap();
        copy(dir.path(), after.path());
        let log = fs::OpenOptions::new().write(true).open(after.path().join("sedge.db-wal")).unwrap();
        let length = log.metadata().unwrap().len();
        log.set_len(length * cut / 1000).unwrap();
        let mut rig = Rig::open(after.path());
        let found = read_back(&mut rig);
        let possible = history.iter().any(|model| check(&found, model).is_ok());
        prop_assert!(possible, "{:?} is none of {:?}", found, history);
        if cut == 1000 {
            prop_assert_eq!(check(&found, history.last().unwrap()), Ok(()));
        }
    }
}
