//! Cache of native code across restarts. A file is `tag | code`. Only this host can make the tag, so code from elsewhere or
//! code that is damaged is never loaded but compiled again.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use siphasher::sip::SipHasher13;

use crate::program;
use sedge_core::isa::{Class, SETTINGS_VERSION, WASMTIME_VERSION};
use sedge_core::message::Digest;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;

const TAG_BYTES: usize = 32;
const KEY_BYTES: usize = 32;

pub struct Cache {
    dir: PathBuf,
    key: [u8; KEY_BYTES],
}

#[derive(Debug, thiserror::Error)]
#[error("failed to {what} {path}")]
pub struct CacheError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Cache {
    /// Opens the cache of a data folder. Creates it and its key if they do not exist.
    pub fn open(data_dir: &Path) -> Result<Self, CacheError> {
        let dir = data_dir.join("cache");
        fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        let path = data_dir.join("cache.key");
        let key = match fs::read(&path) {
            // A torn key costs a compilation.
            Ok(bytes) => bytes.try_into().or_else(|_| make_key(&path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_key(&path)?,
            Err(source) => return Err(CacheError { what: "read", path, source }),
        };
        Ok(Self { dir, key })
    }

    pub fn load(&self, digest: &Digest, class: Class) -> Option<Bytes> {
        self.read(name(digest, class)?)
    }

    /// Why this program does not compile a module, if it tried.
    pub(crate) fn refusal(&self, digest: &Digest, class: Class) -> Option<String> {
        let text = self.read(refusal_name(digest, class)?)?;
        String::from_utf8(text.into()).ok()
    }

    fn read(&self, name: String) -> Option<Bytes> {
        let bytes = Bytes::from(fs::read(self.dir.join(&name)).ok()?);
        if bytes.len() <= TAG_BYTES {
            return None;
        }
        let code = bytes.slice(TAG_BYTES..);
        // The tag covers the name: a file cannot be passed off as another.
        match self.mac(&name, &code).verify_slice(&bytes[..TAG_BYTES]) {
            Ok(()) => Some(code),
            Err(_) => {
                tracing::warn!(file = name, "cached code is damaged or from another host; compiling again");
                None
            }
        }
    }

    pub fn store(&self, digest: &Digest, class: Class, code: &[u8]) -> Result<(), CacheError> {
        name(digest, class).map_or(Ok(()), |name| self.write(&name, code))
    }

    pub(crate) fn store_refusal(&self, digest: &Digest, class: Class, text: &str) -> Result<(), CacheError> {
        refusal_name(digest, class).map_or(Ok(()), |name| self.write(&name, text.as_bytes()))
    }

    fn write(&self, name: &str, code: &[u8]) -> Result<(), CacheError> {
        let tag = self.mac(name, code).finalize().into_bytes();
        let path = self.dir.join(name);
        let unfinished = self.dir.join(format!("{name}.{}.tmp", std::process::id()));
        let mut file = private().truncate(true).open(&unfinished).map_err(io_error("create", &unfinished))?;
        file.write_all(&tag).and_then(|()| file.write_all(code)).map_err(io_error("write", &unfinished))?;
        // Without a sync: a torn file has a wrong tag.
        fs::rename(&unfinished, &path).map_err(io_error("write", &path))
    }

    /// Deletes code of other modules and code for other versions of this program.
    pub fn retain(&self, digests: &BTreeSet<Digest>) {
        let Some(host) = *HOST else { return };
        let unfinished = format!(".{}.tmp", std::process::id());
        let is_needed = |file: &str| {
            let digest = file.split('-').next().and_then(|digest| digest.parse().ok());
            let is_ours = [CODE, REFUSAL].iter().any(|kind| file.ends_with(&format!("-{host:016x}.{kind}")));
            // The compile thread may be writing it.
            let is_unfinished = file.ends_with(&unfinished);
            digest.is_some_and(|digest| digests.contains(&digest)) && (is_ours || is_unfinished)
        };
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for file in files.filter(|file| file.file_name().to_str().is_some_and(|name| !is_needed(name))) {
            if let Err(error) = fs::remove_file(file.path()) {
                tracing::warn!(file = %file.path().display(), %error, "failed to delete unused code");
            }
        }
    }

    fn mac(&self, name: &str, code: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes a key of any length");
        mac.update(name.as_bytes());
        mac.update(&[0]);
        mac.update(code);
        mac
    }
}

const CODE: &str = "code";
const REFUSAL: &str = "refused";

/// File name: the module, its class, and the engine.
fn name(digest: &Digest, class: Class) -> Option<String> {
    Some(format!("{digest}-{}-{:016x}.{CODE}", class.as_str(), (*HOST)?))
}

fn refusal_name(digest: &Digest, class: Class) -> Option<String> {
    Some(format!("{digest}-{}-{:016x}.{REFUSAL}", class.as_str(), (*HOST)?))
}

/// Hash of this program, its engine's settings and this processor, which together determine the generated code. An engine
/// would know more, but costs the daemon memory, and the workers' engines refuse code that does not fit.
static HOST: LazyLock<Option<u64>> = LazyLock::new(|| {
    let program = fs::metadata(program::own()).ok()?;
    let mut hasher = SipHasher13::new();
    let version = (env!("CARGO_PKG_VERSION"), WASMTIME_VERSION, SETTINGS_VERSION);
    (program.len(), program.modified().ok()?, features(), version).hash(&mut hasher);
    Some(hasher.finish())
});

/// What the processor can do beyond its baseline, as far as the compiler makes use of it. Asked of the processor and the
/// kernel's auxiliary vector, since a service may not see `/proc/cpuinfo` (`ProcSubset=pid`).
fn features() -> Vec<u64> {
    let (one, two) = rustix::param::linux_hwcap();
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "the auxiliary vector has the rest"))]
    let mut features = vec![one as u64, two as u64];
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! detected {
            ($($name:tt)*) => { [$(u64::from(std::is_x86_feature_detected!($name))),*] };
        }
        // Those of cranelift-native.
        features.extend(detected!(
            "sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "avx" "avx2" "fma" "avxvnni" "avx512vnni" "bmi1" "bmi2" "avx512bitalg" "avx512dq" "avx512f"
            "avx512vl" "avx512vbmi" "lzcnt" "cmpxchg16b"
        ));
    }
    features
}

fn make_key(path: &Path) -> Result<[u8; KEY_BYTES], CacheError> {
    let mut key = [0; KEY_BYTES];
    rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| io_error("draw a random key for", path)(error.into()))?;
    let mut file = private().truncate(true).open(path).map_err(io_error("create", path))?;
    file.write_all(&key).and_then(|()| file.sync_all()).map_err(io_error("write", path))?;
    Ok(key)
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    move |source| CacheError { what, path: path.to_owned(), source }
}

/// Options for writing a file that only this user may read.
pub fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_processor_is_recognised_without_proc() {
        assert!(features().iter().any(|feature| *feature != 0), "{:?}", features());
        assert_eq!(features(), features());
    }

    #[test]
    fn only_what_this_host_wrote_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest([7; 32]);
        let cache = Cache::open(dir.path()).unwrap();
        assert_eq!(cache.load(&digest, Class::Small), None);
        cache.store(&digest, Class::Small, b"native code").unwrap();
        assert_eq!(cache.load(&digest, Class::Small).unwrap(), "native code");
        assert_eq!(cache.load(&digest, Class::Large), None);
        assert_eq!(Cache::open(dir.path()).unwrap().load(&digest, Class::Small).unwrap(), "native code");

        let path = dir.path().join("cache").join(name(&digest, Class::Small).unwrap());
        let written = fs::read(&path).unwrap();
        for place in [0, TAG_BYTES, written.len() - 1] {
            let mut changed = written.clone();
            changed[place] ^= 1;
            fs::write(&path, changed).unwrap();
            assert_eq!(cache.load(&digest, Class::Small), None, "byte {place}");
        }
        fs::write(&path, &written).unwrap();
        let other = tempfile::tempdir().unwrap();
        let stranger = Cache::open(other.path()).unwrap();
        fs::copy(&path, other.path().join("cache").join(path.file_name().unwrap())).unwrap();
        assert_eq!(stranger.load(&digest, Class::Small), None);

        fs::write(cache.dir.join("left-over.tmp"), "").unwrap();
        cache.store(&Digest([9; 32]), Class::Small, b"other").unwrap();
        cache.retain(&[digest].into());
        assert_eq!(fs::read_dir(&cache.dir).unwrap().count(), 1);
        assert_eq!(cache.load(&digest, Class::Small).unwrap(), "native code");

        let swapped = Digest([8; 32]);
        fs::copy(&path, dir.path().join("cache").join(name(&swapped, Class::Small).unwrap())).unwrap();
        assert_eq!(cache.load(&swapped, Class::Small), None, "under another name");
    }
}
