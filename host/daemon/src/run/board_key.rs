//! The board's own key, by which operators recognise its status and reports. Made at the first start.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context as _;

use crate::durable::write_durably;
use sedge_core::deploy::keys::SigningKey;

const NAME: &str = "board.key";

/// Reads the key of a data folder, or makes one. A damaged file is kept aside: operators have to learn the new key.
pub(super) fn open(data_dir: &Path) -> anyhow::Result<SigningKey> {
    let path = data_dir.join(NAME);
    match fs::read(&path) {
        Ok(pem) => match SigningKey::from_pem(&pem) {
            Ok(key) => return Ok(key),
            Err(error) => {
                let moved_to = path.with_extension("key.damaged");
                tracing::error!(
                    path = %path.display(), %error, moved_to = %moved_to.display(),
                    "the board's key is damaged: a new one is made, which `sedge status` and `sedge push` refuse at first"
                );
                fs::rename(&path, &moved_to).with_context(|| format!("failed to rename {}", path.display()))?;
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("failed to read {}", path.display())),
    }
    let key = SigningKey::generate()?;
    write_durably(&path, key.to_pem().as_bytes()).with_context(|| format!("failed to write {}", path.display()))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_key_stays_is_private_and_is_replaced_only_if_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap().public();
        let path = dir.path().join(NAME);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(open(dir.path()).unwrap().public(), first);
        fs::write(&path, "rot").unwrap();
        let second = open(dir.path()).unwrap().public();
        assert_ne!(second, first);
        assert_eq!(open(dir.path()).unwrap().public(), second);
        assert_eq!(fs::read(dir.path().join("board.key.damaged")).unwrap(), b"rot");
    }
}
