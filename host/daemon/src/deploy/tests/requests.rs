//! Requests: who may ask, for how long, and how often.

use crate::deploy::testing::board::{Board, NODE, TODAY_MS, key, settings};
use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::keys::SigningKey;
use sedge_core::deploy::requests::{AcceptedRequest, BoardRequest, RequestKind};

const KIND: RequestKind = RequestKind::Record { secs: 60, messages: 10, bytes: 1000 };

fn request(id: &str) -> BoardRequest {
    BoardRequest {
        id: id.into(),
        node: NODE.into(),
        function: "warm".into(),
        issued_at_ms: TODAY_MS,
        expires_at_ms: TODAY_MS + 900_000,
        request: KIND,
    }
}

/// A board that trusts the key with `record = true`.
fn board() -> Board {
    let mut settings = settings(&[("ops", &key())]);
    settings.deploy.keys.get_mut("ops").unwrap().record = true;
    Board::with(settings, Vec::new())
}

fn send(board: &mut Board, topic_id: &str, request: &BoardRequest, key: &SigningKey) {
    let envelope = SignedEnvelope::sign(&request.to_json(), &[key]).to_json();
    board.deliver(&format!("sedge/{NODE}/request/{topic_id}"), &envelope);
}

/// The reason of the last refusal.
#[track_caller]
fn refused(board: &mut Board) -> String {
    assert!(board.requests.is_empty(), "{:?}", board.requests);
    let (_, reply) = board.replies.pop().expect("a reply");
    let reply: serde_json::Value = serde_json::from_str(&reply).unwrap();
    format!("{}: {}", reply["refused"]["reason"].as_str().unwrap(), reply["refused"]["detail"].as_str().unwrap())
}

#[test]
fn a_request_is_carried_out_once() {
    let mut board = board();
    for _ in 0..3 {
        send(&mut board, "q1", &request("q1"), &key());
    }
    let (function, key_name) = ("warm".into(), "ops".to_owned());
    let expected = AcceptedRequest { id: "q1".into(), function, key: key_name, kind: KIND };
    assert_eq!(board.requests, [expected]);
    assert!(board.replies.is_empty());
    send(&mut board, "q2", &request("q2"), &key());
    assert_eq!(board.requests.len(), 2, "another is another");
}

#[test]
fn a_key_needs_the_permission_and_the_function() {
    let mut board = Board::new();
    send(&mut board, "q1", &request("q1"), &key());
    assert!(refused(&mut board).starts_with("key-not-allowed: key ops may not record functions: set record = true"));
    let mut with = settings(&[("ops", &key())]);
    let ops = with.deploy.keys.get_mut("ops").unwrap();
    (ops.record, ops.functions) = (true, vec!["cold*".into()]);
    let mut board = Board::with(with, Vec::new());
    send(&mut board, "q1", &request("q1"), &key());
    assert!(refused(&mut board).contains("may not change function warm, only cold*"));
    let mut board = self::board();
    send(&mut board, "q1", &request("q1"), &SigningKey::generate().unwrap());
    assert!(refused(&mut board).starts_with("unknown-key: "));
}

#[test]
fn a_request_for_another_board_or_another_topic_or_another_time_is_refused() {
    let mut board = board();
    let mut check = |topic_id: &str, request: BoardRequest, reason: &str| {
        send(&mut board, topic_id, &request, &key());
        let refused = refused(&mut board);
        assert!(refused.starts_with(reason), "{refused}");
    };
    check("q2", request("q1"), "wrong-target");
    check("q1", BoardRequest { node: "pump-9".into(), ..request("q1") }, "wrong-target");
    let past = BoardRequest { issued_at_ms: TODAY_MS - 900_000, expires_at_ms: TODAY_MS - 1, ..request("q1") };
    check("q1", past, "expired");
    check(
        "q1",
        BoardRequest { expires_at_ms: TODAY_MS + 3_600_001, ..request("q1") },
        "expired: a request expires within",
    );
}

#[test]
fn what_is_no_request_is_refused_and_an_order_is_none() {
    let mut board = board();
    board.deliver(&format!("sedge/{NODE}/request/q1"), b"junk");
    assert!(refused(&mut board).starts_with("bad-envelope"));
    let order = crate::deploy::testing::board::install(&crate::deploy::testing::board::manifest(1, ""), b"x");
    let envelope = SignedEnvelope::sign(&order.to_json(), &[&key()]).to_json();
    board.deliver(&format!("sedge/{NODE}/request/q1"), &envelope);
    assert!(refused(&mut board).starts_with("bad-envelope"));
    // Nor is a request an order.
    let envelope = SignedEnvelope::sign(&request("q1").to_json(), &[&key()]).to_json();
    board.deliver(&format!("sedge/{NODE}/deploy/warm"), &envelope);
    assert_eq!(board.state(), "rejected bad-envelope");
}

#[test]
fn no_more_requests_are_taken_than_can_be_remembered() {
    let mut board = board();
    for number in 0..1024 {
        let id = format!("q{number}");
        send(&mut board, &id, &request(&id), &key());
    }
    assert_eq!(board.requests.len(), 1024);
    board.requests.clear();
    send(&mut board, "more", &request("more"), &key());
    assert!(refused(&mut board).starts_with("over-limit"));
}
