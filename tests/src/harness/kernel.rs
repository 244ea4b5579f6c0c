//! What the kernel holds for an agent: programs, links and maps, by their ids.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{MapInfo, loaded_maps};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramInfo, loaded_links, loaded_programs};

use super::HarnessError;

/// Between two looks at what the kernel still has.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Ids of kernel objects. Ids are given out once, so an object with the same id later is the same object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelObjects {
    /// Programs.
    pub programs: BTreeSet<u32>,
    /// Links: a program's hold on an interface.
    pub links: BTreeSet<u32>,
    /// Maps with the state, which outlive the programs.
    pub maps: BTreeSet<u32>,
    /// Maps of the programs that go on with a packet, which come and go with the programs.
    pub continuations: BTreeSet<u32>,
}

// === impl KernelObjects ===

impl KernelObjects {
    /// What an agent has pinned below its directory.
    ///
    /// # Errors
    /// A pin that cannot be opened.
    pub fn pinned(directory: &Path) -> Result<Self, HarnessError> {
        let mut objects = Self::default();
        for path in files_below(directory)? {
            let kind = path
                .parent()
                .and_then(Path::file_name)
                .map(|name| name.to_string_lossy());
            match kind.as_deref() {
                Some("links") => {
                    objects.links.insert(link_id(&path)?);
                }
                Some("programs") => {
                    let info = ProgramInfo::from_pin(&path).map_err(failed("pinned programs"))?;
                    objects.programs.insert(info.id());
                }
                Some("continuations") => {
                    let info = MapInfo::from_pin(&path).map_err(failed("pinned maps"))?;
                    objects.continuations.insert(info.id());
                }
                _ => {
                    let info = MapInfo::from_pin(&path).map_err(failed("pinned maps"))?;
                    objects.maps.insert(info.id());
                }
            }
        }
        Ok(objects)
    }

    /// Which of them the kernel still has.
    #[must_use]
    pub fn alive(&self) -> Self {
        // An object that goes away between its id and its details is an error of the list, and gone.
        let maps: BTreeSet<u32> = loaded_maps().flatten().map(|info| info.id()).collect();
        Self {
            programs: loaded_programs().flatten().map(|info| info.id()).collect(),
            links: loaded_links().flatten().map(|info| info.id()).collect(),
            continuations: maps.clone(),
            maps,
        }
        .intersection(self)
    }

    /// What is left of them after the kernel has had time to free them: at most so long.
    ///
    /// To look is to open each map. A map of programs that is opened and closed while the kernel is still clearing it keeps a
    /// reference for ever (`prog_array_map_clear` in kernel/bpf/arraymap.c takes one for work that is queued already), so there
    /// are long pauses between looks, and one before the first.
    #[must_use]
    pub fn left_after(&self, limit: Duration) -> Self {
        let deadline = Instant::now() + limit;
        loop {
            thread::sleep(LOOK_INTERVAL);
            let left = self.alive();
            if left.is_empty() || Instant::now() >= deadline {
                return left;
            }
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let maps = self.maps.is_empty() && self.continuations.is_empty();
        self.programs.is_empty() && self.links.is_empty() && maps
    }

    fn intersection(&self, other: &Self) -> Self {
        Self {
            programs: &self.programs & &other.programs,
            links: &self.links & &other.links,
            maps: &self.maps & &other.maps,
            continuations: &self.continuations & &other.continuations,
        }
    }
}

fn link_id(path: &Path) -> Result<u32, HarnessError> {
    let link: FdLink = PinnedLink::from_pin(path).map_err(failed("pinned links"))?.into();
    Ok(link.info().map_err(failed("pinned links"))?.id())
}

fn failed<E: std::error::Error + Send + Sync + 'static>(
    what: &'static str,
) -> impl FnOnce(E) -> HarnessError {
    move |source| HarnessError::Kernel {
        what,
        source: Box::new(source),
    }
}

/// All files below a directory; none if there is no such directory.
fn files_below(directory: &Path) -> Result<Vec<PathBuf>, HarnessError> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(HarnessError::io("read", directory)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(HarnessError::io("read", &directory))?;
            let kind = entry
                .file_type()
                .map_err(HarnessError::io("look at", entry.path()))?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}
