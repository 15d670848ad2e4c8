//! An HTTP server that receives records, as upstream.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

/// One call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Call {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }
}

pub(crate) struct Webhook {
    pub(crate) url: String,
    taken: Arc<Mutex<Vec<Call>>>,
}

impl Webhook {
    /// Answers 200, except for calls for which `refuse` returns another status; those are not recorded.
    pub(crate) fn start(refuse: impl Fn(&Call, usize) -> Option<u16> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind a loopback port");
        let url = format!("http://{}/in", listener.local_addr().expect("the port that was bound"));
        let taken = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&taken);
        std::thread::spawn(move || {
            let mut calls = 0;
            // One connection at a time: a daemon has only one. The thread ends with the process of the test.
            for stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream);
                while let Some(call) = read(&mut reader) {
                    calls += 1;
                    let status = refuse(&call, calls).unwrap_or(200);
                    if status == 200 {
                        lock(&kept).push(call);
                    }
                    let answer = format!("HTTP/1.1 {status} So\r\ncontent-length: 0\r\n\r\n");
                    if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                        break;
                    }
                }
            }
        });
        Self { url, taken }
    }

    pub(crate) fn taken(&self) -> Vec<Call> {
        lock(&self.taken).clone()
    }
}

fn read(stream: &mut BufReader<TcpStream>) -> Option<Call> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let headers = lines.iter().filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    let mut call = Call { headers, body: String::new() };
    let mut body = vec![0; call.header("content-length")?.parse().ok()?];
    stream.read_exact(&mut body).ok()?;
    call.body = String::from_utf8_lossy(&body).into_owned();
    Some(call)
}

fn lock(calls: &Mutex<Vec<Call>>) -> MutexGuard<'_, Vec<Call>> {
    calls.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
