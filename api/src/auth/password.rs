//! Password hashes: argon2id, on threads of its own, a few at a time.

use std::sync::Arc;

use argon2::{
    Argon2,
    password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash},
};
use tokio::sync::Semaphore;

use crate::Problem;

/// Hashes at once. Each takes 19 MiB and a core, so a flood of sign-ins waits in line.
const AT_ONCE: usize = 4;
/// Sign-ins that may wait; more are told to come back.
const WAITING_MAX: usize = 256;

/// Hashes and checks passwords; cheap to clone.
#[derive(Debug, Clone)]
pub struct Hasher {
    working: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// The hash that a sign-in to no account is checked against, so that it takes as long as any other.
    nobody: Arc<str>,
}

impl Default for Hasher {
    fn default() -> Self {
        let nobody = hash_now(&super::keys::random::<32>());
        Self {
            working: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            nobody: nobody.into(),
        }
    }
}

fn hash_now(password: &[u8]) -> String {
    Argon2::default()
        .hash_password(password)
        .expect("the parameters are argon2's own, and the system has randomness")
        .to_string()
}

impl Hasher {
    /// The hash of a password, with a salt of its own.
    pub async fn hash(&self, password: String) -> Result<String, Problem> {
        self.run(move || hash_now(password.as_bytes())).await
    }

    /// Is this the password of this hash? Takes as long when there is no hash.
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, Problem> {
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.nobody.to_string());
        let matches = self
            .run(move || {
                PasswordHash::new(&hash).is_ok_and(|hash| {
                    Argon2::default()
                        .verify_password(password.as_bytes(), &hash)
                        .is_ok()
                })
            })
            .await?;
        Ok(known && matches)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let Ok(_place) = Arc::clone(&self.waiting).try_acquire_owned() else {
            return Err(Problem::unavailable("Too many sign-ins at once"));
        };
        let turn = Arc::clone(&self.working).acquire_owned().await;
        let turn = turn.map_err(|error| Problem::internal(&error))?;
        // The turn goes along, so that a client that hangs up does not let another in beside its work.
        let worked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        worked.await.map_err(|error| Problem::internal(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_is_known_by_its_hash_alone() {
        let hasher = Hasher::default();
        let hash = hasher.hash("correct horse".to_owned()).await.unwrap();
        assert_ne!(
            hash,
            hasher.hash("correct horse".to_owned()).await.unwrap(),
            "each has its salt"
        );
        let verify = async |password: &str, hash: Option<&str>| {
            hasher
                .verify(password.to_owned(), hash.map(str::to_owned))
                .await
                .unwrap()
        };
        assert!(verify("correct horse", Some(&hash)).await);
        assert!(!verify("Correct horse", Some(&hash)).await);
        assert!(!verify("correct horse", None).await);
        assert!(!verify("correct horse", Some("not a hash")).await);
    }

    /// No hash for an unknown account would answer sooner, and so tell which accounts exist.
    #[tokio::test]
    async fn a_sign_in_to_no_account_waits_in_the_same_line() {
        let hasher = Hasher {
            waiting: Arc::new(Semaphore::new(0)),
            ..Hasher::default()
        };
        for hash in [None, Some("$argon2id$…".to_owned())] {
            let refused = hasher
                .verify("correct horse".to_owned(), hash)
                .await
                .unwrap_err();
            assert_eq!(refused.code(), "unavailable");
        }
    }
}
