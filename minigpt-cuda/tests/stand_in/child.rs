//! Runs a test in a process of its own: which driver a process uses is settled once, from its environment.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The environment variable that names the driver.
pub(crate) const DRIVER: &str = "MINIGPT_CUDA_DRIVER";
/// Set in the process that is to run a test's body.
const CHILD: &str = "MINIGPT_CUDA_TEST_CHILD";

/// The driver that a test runs on.
pub(crate) enum Driver<'a> {
    /// The stand-in, built when first asked for.
    StandIn,
    /// Whatever is at this path.
    At(&'a str),
}

/// Runs the test of this name again in a process of its own, with this driver and these variables; there, runs `body`.
pub(crate) fn in_child(test: &str, driver: Driver<'_>, variables: &[(&str, &str)], body: impl FnOnce()) {
    if env::var_os(CHILD).is_some() {
        return body();
    }
    let driver = match driver {
        Driver::StandIn => stand_in().to_owned(),
        Driver::At(path) => path.into(),
    };
    let output = Command::new(env::current_exe().expect("a running test knows its path"))
        .args([test, "--exact", "--nocapture"])
        .env_remove("MINIGPT_STAND_IN_MEMORY")
        .env_remove("MINIGPT_STAND_IN_FAIL")
        .env(CHILD, "1")
        .env(DRIVER, driver)
        .envs(variables.iter().copied())
        .output()
        .expect("the test starts itself");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // A name that matches no test would also end well.
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "in its own process the test ended with {}:\n{stdout}\n{stderr}",
        output.status
    );
}

/// The stand-in driver, built by the cargo that runs these tests.
fn stand_in() -> &'static Path {
    static STAND_IN: OnceLock<PathBuf> = OnceLock::new();
    STAND_IN.get_or_init(|| {
        // A folder of its own, so that the outcome's place does not depend on how these tests were built.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stand-in");
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["build", "--quiet", "--package", "minigpt-cuda-stand-in", "--target-dir"])
            .arg(&target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env_remove("CARGO_BUILD_TARGET")
            .output()
            .expect("these tests need cargo, to build the stand-in driver: run them with `cargo test`");
        assert!(
            output.status.success(),
            "the stand-in driver does not build; try `cargo build -p minigpt-cuda-stand-in`:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let (prefix, suffix) = (env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
        let library = target.join("debug").join(format!("{prefix}minigpt_cuda_stand_in{suffix}"));
        assert!(library.is_file(), "cargo built the stand-in driver, but not as {}", library.display());
        library
    })
}
