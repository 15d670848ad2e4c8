//! Answers a request with what it was given: topic, content type, properties, and how many came for this topic. The first word of
//! the payload may say otherwise: `nothing`, `reject WHY`, `trap`, `retry`.

#![no_std]

extern crate alloc;

use alloc::string::String;
use alloc::vec;

use sedge_function::{Failure, Function, Message, Outcome, Output, export, state, text};

struct Request;

impl Function for Request {
    fn handle(message: Message) -> Outcome {
        let payload = core::str::from_utf8(&message.payload).unwrap_or("?");
        let (command, argument) = payload.split_once(' ').unwrap_or((payload, ""));
        match command {
            "nothing" => return Ok(vec![]),
            "reject" => return Err(Failure::reject(argument)),
            "trap" => panic!("told to"),
            "retry" if message.attempt == 1 => return Err(Failure::retry(10, "told to")),
            _ => {}
        }
        let count = state::increment("count", 1)?;
        let mut told = String::from(message.topic.as_str());
        told.push('\n');
        told.push_str(message.content_type.as_deref().unwrap_or("no content type"));
        for (name, value) in &message.properties {
            for part in ["\n", name, "=", value] {
                told.push_str(part);
            }
        }
        told.push_str(&text!("\ncount=", count, "\n"));
        Ok(vec![Output::forward("requests", payload), Output::reply(200, told)])
    }
}

export!(Request);
