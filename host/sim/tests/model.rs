//! A broker that counts its packet ids, and any order of deliveries, commits, broken connections, failing disks, restarts
//! and versions that come and go: each message takes effect once, in the order of its topic, and none is acknowledged
//! before.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::collections::{BTreeMap, HashMap, VecDeque};

use sedge_core::board::Input;
use sedge_core::manifest::{Manifest, StateScope, Trial, TrialMode};
use sedge_sim::disk::Disk;
use sedge_sim::rig::{RECEIVE_MAXIMUM, Rig, manifest};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn functions() -> Vec<Manifest> {
    vec![
        manifest("f", "t/#", StateScope::Topic),
        manifest("sum", "t/#", StateScope::Function),
        manifest("g", "t/#", StateScope::None),
    ]
}

/// Another version of a function: one that works, or one that traps on most messages and is on trial.
fn push(rig: &mut Rig, random: &mut Random, codes: [&str; 2]) {
    let mut manifest = functions().swap_remove(random.below(3) as usize);
    if &*manifest.name == "g" {
        manifest.state = [StateScope::None, StateScope::Topic, StateScope::Function][random.below(3) as usize];
    }
    let messages = (1 + random.below(4) as u32).try_into().unwrap();
    let trial = Trial { mode: TrialMode::Live, messages, failures: random.below(2) as u32, ..Trial::default() };
    match random.below(3) {
        0 => drop(rig.deploy(manifest, codes[0], None)),
        1 => drop(rig.deploy(manifest, codes[0], Some(trial))),
        _ => drop(rig.deploy(manifest, codes[1], Some(Trial { messages: 9.try_into().unwrap(), ..trial }))),
    }
}

fn play(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1);
    let mut rig = Rig::new(functions());
    let mut unacknowledged: VecDeque<(u16, String, String)> = VecDeque::new();
    let mut sent: u16 = 0;
    let mut topics = HashMap::new();
    let codes = ["derived/x", "derived/x c"];
    for _ in 0..150 {
        match random.below(12) {
            0..4 if unacknowledged.len() < RECEIVE_MAXIMUM.into() => {
                sent += 1;
                // Every seventh asks for another run.
                let letter = if sent.is_multiple_of(7) { 't' } else { 'c' };
                let (topic, payload) = (format!("t/{}", random.below(3)), format!("{letter}{sent}"));
                rig.receive(&topic, &payload, sent, false);
                topics.insert(payload.clone(), topic.clone());
                unacknowledged.push_back((sent, topic, payload));
            }
            4..7 => drop(rig.work()),
            7..9 => rig.answer(),
            9 => {
                rig.pass(random.below(3));
                rig.handle(Input::Timeout);
            }
            10 => match random.below(4) {
                0 => {
                    rig.fail_disk();
                    deliver_again(&mut rig, &unacknowledged);
                }
                1 => {
                    rig = Rig::over(functions(), std::mem::take(&mut rig.disk));
                    {
                        rig.reconnect();
                        deliver_again(&mut rig, &unacknowledged)
                    };
                }
                _ => {
                    rig.reconnect();
                    deliver_again(&mut rig, &unacknowledged)
                }
            },
            _ => push(&mut rig, &mut random, codes),
        }
        acknowledge(&mut rig, &mut unacknowledged);
    }
    for round in 0.. {
        if unacknowledged.is_empty() && rig.disk.parked.is_empty() {
            break;
        }
        let parked: Vec<_> = rig.disk.parked.values().map(|it| (&it.function, &it.message.payload)).collect();
        assert!(round < 200, "seed {seed}: {parked:?} never end");
        rig.settle();
        acknowledge(&mut rig, &mut unacknowledged);
        rig.pass(2);
    }
    judge(&rig.disk, &topics, sent.into(), seed);
}

fn deliver_again(rig: &mut Rig, unacknowledged: &VecDeque<(u16, String, String)>) {
    for (packet_id, topic, payload) in unacknowledged {
        rig.receive(topic, payload, *packet_id, true);
    }
}

fn acknowledge(rig: &mut Rig, unacknowledged: &mut VecDeque<(u16, String, String)>) {
    rig.perform();
    for token in std::mem::take(&mut rig.acknowledged) {
        assert_eq!(token.connection, rig.connection);
        let (packet_id, _, payload) = unacknowledged.pop_front().unwrap();
        assert_eq!(token.packet_id, packet_id, "out of order");
        let parked = rig.disk.parked.values().filter(|it| it.message.payload == payload).count();
        let recorded = rig.disk.payloads().iter().filter(|it| **it == payload).count();
        assert_eq!(parked + recorded, 3, "{payload} was acknowledged before it was safe with all functions");
    }
}

fn judge(disk: &Disk, topics: &HashMap<String, String>, sent: u64, seed: u64) {
    let mut last: HashMap<(&str, &str), u64> = HashMap::new();
    let mut seen: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for record in &disk.records {
        let payload = str::from_utf8(&record.payload).unwrap();
        *seen.entry((&record.function, payload)).or_default() += 1;
        let number: u64 = payload[1..].parse().unwrap();
        let topic = &topics[payload];
        let before = last.insert((&record.function, topic), number).unwrap_or(0);
        assert!(before < number, "seed {seed}: {} had {number} after {before} on {topic}", record.function);
    }
    assert_eq!(seen.len() as u64, 3 * sent, "seed {seed}: lost");
    assert!(seen.values().all(|times| *times == 1), "seed {seed}: twice: {seen:?}");
    let counted = sent - sent / 7;
    let by_topic: u64 = (0..3).map(|topic| disk.count("f", Some(&format!("t/{topic}")))).sum();
    assert_eq!((by_topic, disk.count("sum", None)), (counted, counted), "seed {seed}: state");
    assert!(disk.dead_letters.is_empty(), "{:?}", disk.reasons());
}

#[test]
fn each_message_takes_effect_once() {
    for seed in 0..3000 {
        play(seed);
    }
}
