//! An alert when a temperature goes above a limit, and another when it is well back.

use std::env;
use std::io::{self, Read as _};
use std::process::ExitCode;

fn setting(name: &str, otherwise: f64) -> f64 {
    env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

fn main() -> ExitCode {
    let mut payload = String::new();
    let read = io::stdin().read_to_string(&mut payload);
    let (Ok(_), Some(topic), Ok(value)) = (read, env::args().nth(1), payload.trim().parse::<f64>()) else {
        eprintln!("the payload is not a number: {payload}");
        return ExitCode::FAILURE;
    };

    let (max, hysteresis) = (setting("max", 80.0), setting("hysteresis", 2.0));
    let firing = env::var("SEDGE_STATE").is_ok_and(|state| state.contains("\"firing\":true"));
    if !firing && value > max {
        println!(r#"{{"kind":"alert","key":"{topic}","severity":"critical","summary":"{value} is above {max}","value":{value}}}"#);
        println!(r#"{{"kind":"state","key":"firing","value":true}}"#);
    } else if firing && value <= max - hysteresis {
        println!(r#"{{"kind":"alert","key":"{topic}","status":"resolved","summary":"back to {value}","value":{value}}}"#);
        println!(r#"{{"kind":"state","key":"firing","value":null}}"#);
    }
    ExitCode::SUCCESS
}
