//! Who may see what, and act: the names that a browser may call the board by, and tokens.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode, header};
use sedge_core::deploy::digest;
use sedge_core::tokens;

use super::answer::Refusal;

/// Wrong tokens and actions that are answered within [`PERIOD`]; more are told to wait.
const ATTEMPTS: u32 = 10;
const ACTIONS: u32 = 60;
const PERIOD: Duration = Duration::from_secs(60);
/// A file with more has not been written by `sedge token`.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Bounds on access to the API.
#[derive(Debug)]
pub(crate) struct Access {
    file: PathBuf,
    hosts: Vec<String>,
    wrong: Mutex<Rate>,
    actions: Mutex<Rate>,
}

/// Who sent a request with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Person(String);

impl std::fmt::Display for Person {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Access {
    pub(crate) fn new(data_dir: &Path, hosts: Vec<String>) -> Self {
        let file = data_dir.join(tokens::FILE);
        Self { file, hosts, wrong: Mutex::default(), actions: Mutex::default() }
    }

    /// A page elsewhere may have its own name lead to this board, and read with the browser of somebody who can reach it
    /// (DNS rebinding). The browser then sends that name.
    pub(super) fn check_host(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
        let name = without_port(host);
        let is_loopback =
            name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if is_loopback || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            return Ok(());
        }
        let fix = format!("open it as localhost, or add {name:?} to http.hosts in the configuration");
        Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, "this board is not called that", fix))
    }

    /// Whose token a request has.
    pub(super) fn person(&self, headers: &HeaderMap, now: Instant) -> Result<Person, Refusal> {
        let missing = |fix: &str| Refusal::new(StatusCode::UNAUTHORIZED, "this needs a token", fix);
        let Some(given) = headers.get(header::AUTHORIZATION) else {
            return Err(missing("make one on the board: sedge token"));
        };
        let token = given.to_str().ok().and_then(|given| given.strip_prefix("Bearer "));
        let Some(token) = token else {
            return Err(missing("send the header \"Authorization: Bearer TOKEN\""));
        };
        let known = read(&self.file).map_err(|error| {
            let path = self.file.display();
            let fix = format!("chown it to the daemon's user and chmod 640 {path}");
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("the tokens cannot be read: {error}"), fix)
        })?;
        // Of the digest, so that the time it takes says nothing about the token.
        let given = digest(token.trim().as_bytes());
        if let Some((name, _)) = tokens::tokens(&known).find(|(_, digest)| *digest == given) {
            return Ok(Person(name.to_owned()));
        }
        match self.wrong.lock().unwrap_or_else(std::sync::PoisonError::into_inner).admit(now, ATTEMPTS) {
            true => Err(Refusal::new(StatusCode::UNAUTHORIZED, "no such token", "make one on the board: sedge token")),
            false => Err(too_many("too many wrong tokens")),
        }
    }

    /// Whose token a request has that changes something.
    pub(super) fn actor(&self, headers: &HeaderMap, now: Instant) -> Result<Person, Refusal> {
        let person = self.person(headers, now)?;
        match self.actions.lock().unwrap_or_else(std::sync::PoisonError::into_inner).admit(now, ACTIONS) {
            true => Ok(person),
            false => Err(too_many("too many actions")),
        }
    }
}

fn too_many(what: &str) -> Refusal {
    Refusal::new(StatusCode::TOO_MANY_REQUESTS, what, format!("wait {} s", PERIOD.as_secs()))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    }
}

/// The file is small and read for each request, so that a token works, and is withdrawn, at once.
fn read(path: &Path) -> io::Result<String> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => Err(io::ErrorKind::FileTooLarge.into()),
        Ok(metadata) if metadata.permissions().mode() & 0o027 != 0 => {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, "others may read or write the file"))
        }
        Ok(_) => fs::read_to_string(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// Counts what is admitted within a period.
#[derive(Debug, Default)]
struct Rate {
    since: Option<Instant>,
    count: u32,
}

impl Rate {
    fn admit(&mut self, now: Instant, most: u32) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= PERIOD) {
            *self = Self { since: Some(now), count: 0 };
        }
        self.count += 1;
        self.count <= most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn only_names_of_the_board_are_served() {
        let access = Access::new(Path::new("/nowhere"), vec!["greenhouse.local".into()]);
        for host in
            ["localhost", "localhost:9464", "127.0.0.1:9464", "[::1]:9464", "greenhouse.local", "Greenhouse.LOCAL:80"]
        {
            access.check_host(&headers(header::HOST, host)).expect(host);
        }
        for host in
            ["", "evil.example", "evil.example:9464", "10.0.0.7", "localhost.evil.example", "127.0.0.1.evil.example"]
        {
            let refusal = access.check_host(&headers(header::HOST, host)).expect_err(host);
            assert_eq!(refusal.status, StatusCode::MISDIRECTED_REQUEST, "{host}");
        }
        assert!(access.check_host(&HeaderMap::new()).is_err());
    }

    #[test]
    fn a_token_is_known_by_its_digest_and_wrong_ones_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let access = Access::new(folder.path(), Vec::new());
        let now = Instant::now();
        let status = |headers: &HeaderMap, now| access.person(headers, now).map_err(|refusal| refusal.status);
        assert_eq!(status(&HeaderMap::new(), now), Err(StatusCode::UNAUTHORIZED));
        let right = headers(header::AUTHORIZATION, "Bearer right");
        assert_eq!(status(&right, now), Err(StatusCode::UNAUTHORIZED), "there are no tokens yet");
        let file = folder.path().join(tokens::FILE);
        fs::write(&file, tokens::line("anna", digest(b"right"))).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(status(&right, now), Err(StatusCode::SERVICE_UNAVAILABLE), "others may read it");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(status(&right, now), Ok(Person("anna".into())));
        let wrong = headers(header::AUTHORIZATION, "Bearer wrong");
        let refused: Vec<_> = (0..2 * ATTEMPTS).map(|_| status(&wrong, now).unwrap_err()).collect();
        assert_eq!(refused.last(), Some(&StatusCode::TOO_MANY_REQUESTS));
        assert_eq!(status(&right, now), Ok(Person("anna".into())), "it is not the one who guesses");
        assert_eq!(status(&wrong, now + PERIOD), Err(StatusCode::UNAUTHORIZED));
        assert_eq!(status(&headers(header::AUTHORIZATION, "Basic cmlnaHQ="), now), Err(StatusCode::UNAUTHORIZED));
    }
}
