//! Against a real folder.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::num::NonZeroU64;

use sedge_core::stream::SinkId;
use tokio::sync::mpsc;

use super::*;

fn config(path: &Path, file: u64, total: u64) -> config::FileSink {
    let bytes = |bytes| NonZeroU64::new(bytes).unwrap();
    config::FileSink {
        path: path.to_owned(),
        max_file_bytes: bytes(file),
        max_total_bytes: bytes(total),
        ..config::FileSink::default()
    }
}

fn envelope(id: u64, time: &str) -> Envelope {
    Envelope {
        topic: "up/b/readings".into(),
        payload: format!("{{\"n\":{id}}}").into(),
        content_type: Some("application/json".into()),
        properties: vec![("id", id.to_string().into()), ("time", time.to_owned().into()), ("sedge-hops", "1".into())],
        retain: false,
        at_ms: 0,
        clock_synced: true,
    }
}

fn batch(ids: std::ops::Range<u64>, time: &str) -> Vec<(PublishToken, Envelope)> {
    ids.map(|id| (PublishToken(id), envelope(id, time))).collect()
}

const DAY: &str = "2026-11-28T10:00:00.000Z";

/// The numbers of the lines of all files, in order, and the names of these.
fn content(folder: &Path) -> (Vec<u64>, Vec<String>) {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let lines = names.iter().flat_map(|name| {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{text}");
        text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()).collect::<Vec<_>>()
    });
    (lines.map(|line| line["data"]["n"].as_u64().unwrap()).collect(), names)
}

#[test]
fn a_line_is_a_cloud_event_with_json_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = Folder::new("cold-room-2", &config(dir.path(), 1 << 20, 1 << 30));
    let mut text = envelope(2, DAY);
    (text.payload, text.content_type) = ("21.5 °C".into(), Some("text/plain".into()));
    let mut bytes = envelope(3, DAY);
    (bytes.payload, bytes.content_type) = (vec![0xff, 0].into(), None);
    let all = [envelope(1, DAY), text, bytes].map(|it| (PublishToken(1), it));
    assert_eq!(folder.take(&all), Answer::Accepted);
    let written = std::fs::read_to_string(dir.path().join("cold-room-2-000001-2026-11-28.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        lines[0],
        serde_json::json!({
            "id": "1", "time": DAY, "subject": "up/b/readings", "datacontenttype": "application/json", "data": { "n": 1 },
        })
    );
    assert_eq!(lines[1]["data"], "21.5 °C");
    assert_eq!(lines[2]["data_base64"], "/wA=");
}

#[test]
fn files_rotate_by_size_and_day_and_the_oldest_make_room() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let mut folder = Folder::new("b", &config(dir.path(), 500, 2_000));
    for n in 0..40 {
        assert_eq!(folder.take(&batch(n * 5..n * 5 + 5, DAY)), Answer::Accepted);
    }
    std::fs::remove_file(dir.path().join("notes.txt")).expect("others' files stay");
    let (numbers, names) = content(dir.path());
    assert_eq!(*numbers.last().unwrap(), 199);
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    let size = |name: &String| std::fs::metadata(dir.path().join(name)).unwrap().len();
    assert!((2..=4).contains(&names.len()) && names.iter().map(size).sum::<u64>() <= 2_000 + 200, "{names:?}");
    folder.take(&batch(200..201, "2026-11-29T00:00:00.000Z"));
    folder.take(&batch(201..202, DAY));
    let (numbers, names) = content(dir.path());
    assert_eq!(numbers[numbers.len() - 2..], [200, 201], "a clock that goes back begins no file");
    assert!(names.last().unwrap().ends_with("-2026-11-29.jsonl"), "{names:?}");
}

#[test]
fn a_restart_goes_on_in_the_last_file_without_the_rest_of_a_torn_line() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 1 << 20, 1 << 30);
    assert_eq!(Folder::new("b", &config).take(&batch(0..3, DAY)), Answer::Accepted);
    let path = dir.path().join("b-000001-2026-11-28.jsonl");
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"id\":\"3\",\"da").unwrap();
    assert_eq!(Folder::new("b", &config).take(&batch(3..5, DAY)), Answer::Accepted);
    assert_eq!(content(dir.path()).0, [0, 1, 2, 3, 4]);
}

#[test]
fn a_stick_that_is_pulled_out_is_retried_and_its_mount_point_stays_empty() {
    let dir = tempfile::tempdir().unwrap();
    let stick = dir.path().join("stick/sedge");
    std::fs::create_dir_all(&stick).unwrap();
    let mut folder = Folder::new("b", &config(&stick, 1 << 20, 1 << 30));
    assert_eq!(folder.take(&batch(0..2, DAY)), Answer::Accepted);
    std::fs::rename(dir.path().join("stick"), dir.path().join("pocket")).unwrap();
    std::fs::create_dir(dir.path().join("stick")).unwrap();
    let Answer::Retry { reason, .. } = folder.take(&batch(2..4, DAY)) else { panic!("nothing is there to write to") };
    assert!(reason.contains("stick/sedge: put the stick in"), "{reason}");
    assert_eq!(std::fs::read_dir(dir.path().join("stick")).unwrap().count(), 0);
    std::fs::remove_dir(dir.path().join("stick")).unwrap();
    std::fs::rename(dir.path().join("pocket"), dir.path().join("stick")).unwrap();
    assert_eq!(folder.take(&batch(2..4, DAY)), Answer::Accepted);
    assert_eq!(content(&stick).0, [0, 1, 2, 3]);
}

#[test]
fn a_full_disk_and_a_folder_that_may_not_be_written_say_what_to_do() {
    let folder = Folder::new("b", &config(Path::new("/media/stick"), 1, 1));
    for (kind, part) in [
        (io::ErrorKind::StorageFull, "/media/stick is full"),
        (io::ErrorKind::PermissionDenied, "ReadWritePaths="),
        (io::ErrorKind::Other, "failed to write to /media/stick"),
    ] {
        let said = folder.explain(&kind.into());
        assert!(said.contains(part), "{said}");
    }
    // A device that is always full, in the place of a file.
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/full", dir.path().join("b-000001-2026-11-28.jsonl")).unwrap();
    let mut folder = Folder::new("b", &config(dir.path(), 1 << 20, 1 << 30));
    assert!(matches!(folder.take(&batch(0..1, DAY)), Answer::Retry { .. }));
}

#[test]
fn the_thread_answers_each_record() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, mut answers) = mpsc::channel(1024);
    let to = Answers { sink: SinkId::UPSTREAM, sender };
    let sink = FileSink::spawn("b", &config(dir.path(), 1 << 20, 1 << 30), to).unwrap();
    for (token, envelope) in batch(0..100, DAY) {
        sink.send(token, envelope).unwrap();
    }
    for n in 0..100 {
        assert_eq!(answers.blocking_recv().unwrap(), (SinkId::UPSTREAM, PublishToken(n), Answer::Accepted));
    }
    assert_eq!(content(dir.path()).0, (0..100).collect::<Vec<_>>());
}
