use super::*;
use crate::time::rfc3339;

/// Rules of a place as a TZif file without changes has them: version 2, an empty first part, and the rule as its footer.
pub(crate) fn zone(rule: &str, offset: i32) -> Zone {
    let part = |bytes: &mut Vec<u8>| {
        bytes.extend_from_slice(b"TZif2");
        bytes.extend_from_slice(&[0; 15]);
        for count in [0u32, 0, 0, 0, 1, 4] {
            bytes.extend_from_slice(&count.to_be_bytes());
        }
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(b"LMT\0");
    };
    let mut file = Vec::new();
    part(&mut file);
    part(&mut file);
    file.extend_from_slice(format!("\n{rule}\n").as_bytes());
    Zone::parse(&file).unwrap()
}

fn berlin() -> Zone {
    zone("CET-1CEST,M3.5.0,M10.5.0/3", 3600)
}

/// Milliseconds of a time of 2026 in UTC.
fn at(month: u32, day: u32, hour: u64, minute: u64) -> u64 {
    let days = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1] + u64::from(day) - 1;
    (1_767_225_600 + days * 86_400 + hour * 3600 + minute * 60) * 1000
}

#[track_caller]
fn due(expressions: &[&str], zone: Zone, from: u64, expected: &[&str]) {
    let times = Times::new(expressions, zone).unwrap();
    let mut now = from;
    for expected in expected {
        now = times.next(now).unwrap();
        assert_eq!(rfc3339(now).trim_end_matches(":00.000Z"), *expected, "{expressions:?}");
    }
}

#[test]
fn times_are_those_of_the_place() {
    due(&["0 6 * * mon-fri"], Zone::utc(), at(1, 2, 6, 0), &["2026-01-05T06:00", "2026-01-06T06:00"]);
    due(&["0 6 * * mon-fri"], berlin(), at(1, 2, 6, 0), &["2026-01-05T05:00", "2026-01-06T05:00"]);
    due(&["0 6 * * *"], berlin(), at(7, 1, 0, 0), &["2026-07-01T04:00", "2026-07-02T04:00"]);
    due(
        &["0 6 * * *", "30 6 * * *", "0 */6 * * *"],
        Zone::utc(),
        at(1, 1, 5, 0),
        &["2026-01-01T06:00", "2026-01-01T06:30", "2026-01-01T12:00", "2026-01-01T18:00", "2026-01-02T00:00"],
    );
    due(&["0 0 29 2 *"], Zone::utc(), at(1, 1, 0, 0), &["2028-02-29T00:00", "2032-02-29T00:00"]);
    due(&["@daily"], Zone::utc(), at(1, 1, 0, 0), &["2026-01-02T00:00"]);
    assert_eq!(
        Times::new(&["*/10 * * * * *"], berlin()).unwrap().next(at(1, 1, 0, 0) + 9_999),
        Some(at(1, 1, 0, 0) + 10_000)
    );
}

#[test]
fn a_fixed_time_that_the_clock_skips_is_due_after_the_gap() {
    // On 29 March the clock of Berlin goes from 02:00 to 03:00, which is 01:00 in UTC.
    due(&["30 2 * * *"], berlin(), at(3, 28, 0, 0), &["2026-03-28T01:30", "2026-03-29T01:00", "2026-03-30T00:30"]);
    due(&["0 2 * * *"], berlin(), at(3, 28, 2, 0), &["2026-03-29T01:00", "2026-03-30T00:00"]);
    due(&["0 3 * * *"], berlin(), at(3, 28, 3, 0), &["2026-03-29T01:00", "2026-03-30T01:00"]);
}

#[test]
fn what_is_due_every_so_often_is_left_out_in_the_gap() {
    due(&["*/30 * * * *"], berlin(), at(3, 29, 0, 0), &["2026-03-29T00:30", "2026-03-29T01:00", "2026-03-29T01:30"]);
    due(&["15 * * * *"], berlin(), at(3, 29, 0, 0), &["2026-03-29T00:15", "2026-03-29T01:15"]);
    due(&["0,30 2 * * *"], berlin(), at(3, 28, 12, 0), &["2026-03-30T00:00", "2026-03-30T00:30"]);
}

#[test]
fn a_fixed_time_that_comes_twice_is_due_the_first_time() {
    // On 25 October the clock of Berlin goes from 03:00 back to 02:00, which is 01:00 in UTC.
    due(&["30 2 * * *"], berlin(), at(10, 24, 12, 0), &["2026-10-25T00:30", "2026-10-26T01:30"]);
    due(&["30 2 * * *"], berlin(), at(10, 25, 0, 45), &["2026-10-26T01:30"]);
    due(&["30 2 * * *"], berlin(), at(10, 25, 1, 5), &["2026-10-26T01:30"]);
    due(&["0 3 * * *"], berlin(), at(10, 24, 12, 0), &["2026-10-25T02:00"]);
}

#[test]
fn what_is_due_every_so_often_runs_in_both_hours() {
    due(
        &["*/30 * * * *"],
        berlin(),
        at(10, 24, 23, 30),
        &["2026-10-25T00:00", "2026-10-25T00:30", "2026-10-25T01:00", "2026-10-25T01:30", "2026-10-25T02:00"],
    );
    due(
        &["0,30 2 * * *"],
        berlin(),
        at(10, 24, 12, 0),
        &["2026-10-25T00:00", "2026-10-25T00:30", "2026-10-25T01:00", "2026-10-25T01:30", "2026-10-26T01:00"],
    );
}

#[test]
fn in_the_south_summer_is_over_new_year() {
    due(
        &["0 6 * * *"],
        zone("AEST-10AEDT,M10.1.0,M4.1.0/3", 36_000),
        at(4, 3, 0, 0),
        &["2026-04-03T19:00", "2026-04-04T20:00"],
    );
}

#[test]
fn the_zones_of_this_machine_are_read() {
    let Ok(file) = std::fs::read("/usr/share/zoneinfo/Europe/Berlin") else { return };
    let zone = Zone::parse(&file).unwrap();
    due(&["30 2 * * *"], zone.clone(), at(3, 28, 0, 0), &["2026-03-28T01:30", "2026-03-29T01:00", "2026-03-30T00:30"]);
    due(&["30 2 * * *"], zone, at(10, 24, 12, 0), &["2026-10-25T00:30", "2026-10-26T01:30"]);
}

#[test]
fn from_whichever_moment_it_is_looked_the_times_are_the_same() {
    for expression in ["30 2 * * *", "*/20 * * * *", "0 0-4 * * *", "59 59 2 * * *"] {
        let times = Times::new(&[expression], berlin()).unwrap();
        for (from, until) in [(at(3, 28, 20, 0), at(3, 29, 6, 0)), (at(10, 24, 20, 0), at(10, 25, 6, 0))] {
            let mut all = Vec::new();
            let mut now = from;
            while now < until {
                now = times.next(now).unwrap();
                all.push(now);
            }
            for moment in (from..until).step_by(61_000) {
                let next = all.iter().find(|it| **it > moment);
                assert_eq!(times.next(moment).as_ref(), next, "{expression} after {}", rfc3339(moment));
            }
        }
    }
}

#[test]
fn what_is_no_expression_or_never_comes_is_refused_with_the_fix() {
    let refuse = |text: &str| parse(text).unwrap_err().to_string();
    let long = "0,".repeat(200);
    for (text, said) in [
        ("", "is not the expression of a schedule"),
        ("6", "is not the expression of a schedule"),
        ("0 25 * * *", "is not the expression of a schedule"),
        ("0 6 * * moonday", "is not the expression of a schedule"),
        ("0 6 * * * * 2030", "is not the expression of a schedule"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 31 2,4,6,9,11 *", "never comes"),
        (&*long, "the limit is 200"),
    ] {
        assert!(refuse(text).contains(said), "{text}: {}", refuse(text));
    }
    assert!(refuse("0 25 * * *").ends_with("as in \"0 6 * * mon-fri\""), "{}", refuse("0 25 * * *"));
}

#[test]
fn times_beyond_the_calendar_do_not_panic() {
    for zone in [Zone::utc(), berlin()] {
        let times = Times::new(&["0 6 * * *"], zone).unwrap();
        for now in [0, 1 << 40, 1 << 45, 1 << 50, u64::MAX / 1000, u64::MAX] {
            let _ = times.next(now);
        }
    }
}
