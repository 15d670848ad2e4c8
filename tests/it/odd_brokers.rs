//! Brokers that refuse, that cannot do everything, or that are none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::daemon::{Daemon, Setup};
use crate::harness::eventually;
use crate::harness::fake::{Fake, Packet};
use crate::harness::guest::guest;

#[test]
fn a_board_is_online_once_the_broker_has_answered_its_subscriptions() {
    let (is_granted, was_early) = (AtomicBool::new(false), Arc::new(AtomicBool::new(false)));
    let early = Arc::clone(&was_early);
    let fake = Fake::start(move |packet| {
        if packet.kind() == 8 && packet.is_about("count/#") {
            std::thread::sleep(Duration::from_secs(2));
            is_granted.store(true, Ordering::Relaxed);
        }
        if packet.kind() == 3 && is_online(packet) && !is_granted.load(Ordering::Relaxed) {
            early.store(true, Ordering::Relaxed);
        }
        Some(packet.welcome())
    });
    let setup = Setup::new(fake.url()).function(&guest("count"));
    let mut daemon = Daemon::prepare(&setup);
    daemon.launch();
    let waits = || {
        let answer = daemon.get("/readyz");
        answer.is_some_and(|(status, text)| status == 503 && text.contains("not answered by the broker yet"))
    };
    assert!(eventually(Duration::from_secs(20), waits), "log:\n{}", daemon.log());
    let ready = || daemon.get("/readyz").is_some_and(|(status, _)| status == 200);
    assert!(eventually(Duration::from_secs(20), ready), "log:\n{}", daemon.log());
    assert!(eventually(Duration::from_secs(20), || fake.seen(3).iter().any(is_online)), "log:\n{}", daemon.log());
    assert!(!was_early.load(Ordering::Relaxed), "the board said that it is online before it heard anything");
    assert!(!daemon.log().contains("does not answer subscriptions"), "log:\n{}", daemon.log());
}

fn is_online(packet: &Packet) -> bool {
    packet.is_about("sedge/board/status") && packet.is_about("online")
}

#[test]
fn a_refused_subscription_is_named_until_it_is_granted() {
    let refused = AtomicUsize::new(0);
    let fake = Fake::start(move |packet| {
        let is_refused = packet.is_about("count/#") && refused.fetch_add(1, Ordering::Relaxed) < 2;
        Some(if packet.kind() == 8 && is_refused { packet.suback(0x87) } else { packet.welcome() })
    });
    let mut daemon = Daemon::prepare(&Setup::new(fake.url()).function(&guest("count")));
    daemon.launch();
    let named = || {
        let answer = daemon.get("/readyz");
        answer.is_some_and(|(status, text)| status == 503 && text.contains("count/#: not authorized"))
    };
    assert!(eventually(Duration::from_secs(30), named), "log:\n{}", daemon.log());
    let ready = || daemon.get("/readyz").is_some_and(|(status, _)| status == 200);
    assert!(eventually(Duration::from_secs(30), ready), "log:\n{}", daemon.log());
    let statuses = fake.seen(3);
    assert!(
        statuses.iter().any(|it| it.is_about("sedge/board/status") && it.is_about("refuses subscriptions: count/#"))
    );
    // The status is published after `/readyz` says so.
    let is_good = || fake.seen(3).last().is_some_and(|it| !it.is_about("refuses"));
    assert!(eventually(Duration::from_secs(20), is_good), "log:\n{}", daemon.log());
}
