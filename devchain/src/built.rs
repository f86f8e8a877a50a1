//! Programs that are built, not installed. Cargo builds a program for the tests of its own package alone: tests of another start
//! what was built last, and must not judge yesterday's.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// A program of this workspace, built beside the test that runs.
///
/// # Panics
/// When it was not built, or some of what it is built from is newer than it.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it is");
    let folder = test.ancestors().nth(2).expect("tests lie in `deps`");
    let program = folder.join(name);
    if let Err(why) = check(&program) {
        panic!("{}: {why}: run `make build`", program.display());
    }
    program
}

/// Is the program there, and newer than all that it was built from? Cargo lists that beside it, and builds anew by the same times.
fn check(program: &Path) -> Result<(), String> {
    let made = modified(program).map_err(|error| format!("it was not built ({error})"))?;
    let list = fs::read_to_string(program.with_extension("d"))
        .map_err(|error| format!("what it was built from is not known ({error})"))?;
    for source in sources(&list) {
        let changed = modified(&source)
            .map_err(|error| format!("{}, of what it was built from: {error}", source.display()))?;
        if changed > made {
            return Err(format!("it is older than {}", source.display()));
        }
    }
    Ok(())
}

fn modified(path: &Path) -> io::Result<SystemTime> {
    fs::metadata(path)?.modified()
}

/// What a rule of `make` names behind its colon. A space within a name has a backslash before it.
fn sources(rule: &str) -> Vec<PathBuf> {
    let named = rule.lines().next().unwrap_or_default();
    let named = named.split_once(": ").map_or("", |(_, named)| named);
    let (mut sources, mut source) = (Vec::new(), String::new());
    let mut characters = named.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' if characters.next_if_eq(&' ').is_some() => source.push(' '),
            ' ' => sources.push(PathBuf::from(std::mem::take(&mut source))),
            other => source.push(other),
        }
    }
    sources.push(PathBuf::from(source));
    sources.retain(|source| !source.as_os_str().is_empty());
    sources
}

#[cfg(test)]
mod tests {
    use std::{fs::File, time::Duration};

    use super::*;

    #[test]
    fn a_program_that_is_older_than_what_it_was_built_from_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let [program, list, old, new] =
            ["app", "app.d", "old.rs", "new one.rs"].map(|name| folder.path().join(name));
        assert!(check(&program).is_err_and(|why| why.contains("not built")));
        for file in [&program, &old, &new] {
            File::create(file).expect("a file");
        }
        assert!(check(&program).is_err_and(|why| why.contains("not known")));
        let spaced = new.display().to_string().replace(' ', "\\ ");
        let rule = format!("{}: {} {spaced}\n", program.display(), old.display());
        fs::write(&list, rule).expect("the list");
        let made = modified(&program).expect("the time of a file");
        let touch = |file: &Path, time| {
            let file = File::options().write(true).open(file).expect("the file");
            file.set_modified(time).expect("its time is set");
        };
        touch(&old, made - Duration::from_secs(1));
        touch(&new, made);
        assert_eq!(check(&program), Ok(()));
        touch(&new, made + Duration::from_millis(1));
        assert!(
            check(&program)
                .is_err_and(|why| why.contains("older than") && why.contains("new one.rs"))
        );
        touch(&new, made);
        fs::remove_file(&old).expect("it was there");
        assert!(check(&program).is_err_and(|why| why.contains("old.rs")));
    }
}
