#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use super::*;
use sedge_core::manifest::StateScope;
use sedge_core::message::{Message, Outcome, StateGrowth, Usage, Verdict};

fn header() -> Box<Header> {
    Header::new("pump-3", "sedge", "warm", StateScope::None, 5).into()
}

fn run(payload: impl Into<Bytes>) -> Box<TappedRun> {
    let (verdict, usage) = (Verdict::Done(Vec::new()), Usage::default());
    let outcome = Outcome { verdict, writes: Vec::new(), growth: StateGrowth::default(), usage, drawn: None };
    let message = Message::new("a", payload.into(), 5, true).into();
    Box::new(TappedRun { version: None, state: None, message, is_unsure: false, refused: None, outcome })
}

struct Bench {
    folder: tempfile::TempDir,
    recordings: Recordings,
    replies: mpsc::Receiver<ReplyPart>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (recordings, replies) = Recordings::spawn(folder.path(), 1 << 20).unwrap();
        Self { folder, recordings, replies }
    }

    fn send(&mut self, command: Command) {
        self.recordings.send(command).unwrap();
    }

    fn run(&mut self, id: &str, payload: impl Into<Bytes>) {
        self.recordings.run(id, &run(payload)).unwrap();
    }

    /// The first reply to the next request, and the pieces that follow.
    fn answer(&mut self) -> (Reply, Vec<Bytes>) {
        let ReplyPart { number, payload, .. } = self.replies.blocking_recv().unwrap();
        assert_eq!(number, 0);
        let reply: Reply = serde_json::from_slice(&payload).unwrap();
        let pieces = if let Reply::Ok(answer) = &reply { answer.pieces } else { 0 };
        let piece = |number| {
            let part = self.replies.blocking_recv().unwrap();
            assert_eq!(part.number, number);
            part.payload
        };
        (reply, (1..=pieces).map(piece).collect())
    }

    fn fetch(&mut self, function: &str, of: &str, from: u32, pieces: u32) -> (Reply, Vec<Bytes>) {
        self.send(Command::Fetch { request: "q".into(), function: function.into(), of: of.into(), from, pieces });
        self.answer()
    }

    fn file(&self, id: &str) -> Vec<u8> {
        fs::read(self.folder.path().join(FOLDER).join(id).with_extension(SUFFIX)).unwrap()
    }
}

fn ok(reply: Reply) -> RequestAnswer {
    let Reply::Ok(answer) = reply else { panic!("{reply:?}") };
    answer
}

#[test]
fn a_recording_is_written_and_fetched_in_pieces() {
    let mut bench = Bench::new();
    bench.recordings.begin("r1".into(), header()).unwrap();
    assert_eq!(ok(bench.answer().0).state, "recording");
    for _ in 0..3 {
        bench.run("r1", vec![b'x'; PIECE_BYTES]);
    }
    let (reply, pieces) = bench.fetch("warm", "r1", 0, 0);
    let answer = ok(reply);
    assert_eq!((answer.state.as_str(), answer.runs, pieces.len()), ("recording", 3, 0));
    bench.send(Command::End { id: "r1".into(), why: Why::Messages });
    let (reply, mut whole) = bench.fetch("warm", "r1", 0, 2);
    let answer = ok(reply);
    assert_eq!((answer.state.as_str(), answer.runs, answer.pieces), ("ended", 3, 2));
    let (reply, rest) = bench.fetch("warm", "r1", 2, 100);
    assert_eq!(ok(reply).pieces as usize, rest.len());
    whole.extend(rest);
    assert_eq!(whole.concat(), bench.file("r1"));
    assert_eq!(answer.bytes as usize, whole.concat().len());
    bench.send(Command::Drop { request: "q".into(), function: "warm".into(), of: "r1".into() });
    assert_eq!(ok(bench.answer().0).state, "dropped");
    assert!(matches!(bench.fetch("warm", "r1", 0, 1).0, Reply::Refused { .. }));
}

#[test]
fn a_key_for_one_function_gets_no_recording_of_another_and_no_other_file() {
    let mut bench = Bench::new();
    bench.recordings.begin("r1".into(), header()).unwrap();
    bench.answer();
    fs::write(bench.folder.path().join("secret.rec"), "{\"recording\":{}}\n").unwrap();
    for (function, of) in [("cold", "r1"), ("warm", "../secret"), ("warm", ""), ("warm", "r2"), ("warm", "r1.rec")] {
        let (reply, _) = bench.fetch(function, of, 0, 1);
        let Reply::Refused { detail, .. } = reply else { panic!("{function} {of}: {reply:?}") };
        assert!(detail.contains("there is no recording"), "{detail}");
    }
}

#[test]
fn what_the_thread_cannot_take_is_told_at_once_and_blocks_nobody() {
    let (commands, received) = flume::bounded(MAX_WAITING);
    let mut recordings = Recordings { commands, waiting: BTreeMap::new(), waiting_bytes: Arc::default() };
    recordings.begin("r1".into(), header()).unwrap();
    let half = run(vec![b'x'; (MAX_WAITING_BYTES / 2) as usize]);
    recordings.run("r1", &half).unwrap();
    let before = recordings.waiting_bytes.load(Relaxed);
    assert_eq!(recordings.run("r1", &half), Err(Overrun), "too many bytes");
    assert_eq!(recordings.waiting_bytes.load(Relaxed), before, "what is not taken is not counted");
    for _ in 0..=MAX_WAITING {
        recordings.run("r1", &run("1")).unwrap();
    }
    assert_eq!(received.len(), 2, "the thread is woken once");
    let Ok(Command::Begin { waiting, .. }) = received.recv() else { panic!("it begins") };
    assert!(matches!(received.recv(), Ok(Command::Write)));
    assert_eq!(lock(&waiting).runs as usize, 2 + MAX_WAITING);
    for _ in 0..MAX_WAITING {
        recordings.send(Command::Write).unwrap();
    }
    assert_eq!(recordings.end(&"r1".into(), Why::Time), Err(Overrun), "too many commands");
    assert_eq!(recordings.run("r1", &half), Ok(()), "it has ended");
    drop(received);
    assert_eq!(recordings.end(&"r1".into(), Why::Time), Err(Overrun), "the thread is gone");
}

#[test]
fn a_recording_that_cannot_begin_takes_no_room_from_others() {
    let mut bench = Bench::new();
    fs::write(bench.folder.path().join(FOLDER).join("r1.rec"), "").unwrap();
    bench.recordings.begin("r1".into(), header()).unwrap();
    bench.run("r1", "1");
    assert!(matches!(bench.answer().0, Reply::Refused { .. }));
    bench.run("r1", "2");
    bench.recordings.end(&"r1".into(), Why::Time).unwrap();
    assert_eq!(bench.recordings.waiting_bytes.load(Relaxed), 0);
}

#[test]
fn a_run_is_in_the_file_within_a_second_or_so() {
    let mut bench = Bench::new();
    bench.recordings.begin("r1".into(), header()).unwrap();
    assert_eq!(ok(bench.answer().0).state, "recording");
    let begun = bench.file("r1").len();
    bench.run("r1", "1");
    let until = std::time::Instant::now() + 20 * FLUSH_AFTER;
    while bench.file("r1").len() == begun {
        assert!(std::time::Instant::now() < until, "it is not in the file");
        std::thread::sleep(FLUSH_AFTER / 10);
    }
    assert!(bench.file("r1").ends_with(b"}\n"));
    assert_eq!(bench.recordings.waiting_bytes.load(Relaxed), 0);
}

#[test]
fn a_recording_over_which_the_daemon_ended_is_ended_at_its_last_whole_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut encoder = Encoder::default();
    encoder.header(&header());
    append_run(&run("1").as_recorded(), &mut encoder.lines);
    let whole = encoder.lines.len();
    append_run(&run("2").as_recorded(), &mut encoder.lines);
    fs::create_dir(folder.path().join(FOLDER)).unwrap();
    for (id, length) in [("a", encoder.lines.len() - 1), ("b", whole), ("c", whole + 10)] {
        let path = folder.path().join(FOLDER).join(id).with_extension(SUFFIX);
        fs::write(&path, &encoder.lines[..length]).unwrap();
    }
    let (recordings, replies) = Recordings::spawn(folder.path(), 1 << 20).unwrap();
    let mut bench = Bench { folder, recordings, replies };
    for id in ["a", "b", "c"] {
        let answer = ok(bench.fetch("warm", id, 0, 0).0);
        assert_eq!((answer.runs, answer.why.as_deref()), (1, Some("the daemon ended")), "{id}");
        assert_eq!(bench.file(id)[..whole], encoder.lines[..whole], "{id}");
    }
}

#[test]
fn old_recordings_make_room_for_new_ones() {
    let mut bench = Bench::new();
    for id in ["a", "b", "c"] {
        bench.recordings.begin(id.into(), header()).unwrap();
        assert_eq!(ok(bench.answer().0).state, "recording", "{id}");
        bench.run(id, vec![b'x'; 400 << 10]);
        bench.send(Command::End { id: id.into(), why: Why::Time });
    }
    assert!(matches!(bench.fetch("warm", "a", 0, 0).0, Reply::Refused { .. }), "the oldest");
    assert_eq!(ok(bench.fetch("warm", "c", 0, 0).0).runs, 1);
}
