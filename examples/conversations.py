"""What was said in the example home: short, plausible pieces of software work, all invented."""

# ruff: noqa: E501 - what people say isn't wrapped

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Run:
    """A command that the agent ran, and what it printed."""

    command: str
    output: str
    exit_code: int = 0


@dataclass(frozen=True)
class Turn:
    """One request of the user and what came of it."""

    request: str
    thought: str
    steps: tuple[Run, ...]
    answer: str


@dataclass(frozen=True)
class Project:
    """Where a conversation took place."""

    cwd: str
    repository: str | None
    files: tuple[str, ...] = field(default=())


ORCHARD = Project(
    "/home/dev/orchard-api", "https://git.example.org/orchard/orchard-api.git", ("app/main.py", "app/stock.py")
)
TIDEPOOL = Project("/home/dev/tidepool", "https://git.example.org/tools/tidepool.git", ("src/main.rs", "src/sync.rs"))
LANTERN = Project("/home/dev/lantern-web", "https://git.example.org/lantern/web.git", ("src/App.tsx", "vite.config.ts"))
LEDGER = Project(
    "/srv/batch/ledger", "https://git.example.org/finance/ledger.git", ("ledger/close.py", "ledger/report.py")
)
NOTES = Project("/home/dev/notes", None, ("ideas.md",))

PAGINATION = (
    Turn(
        "The /stock endpoint returns all 40,000 rows at once and times out. Please add keyset pagination.",
        "The endpoint orders by name, which isn't unique. A keyset needs (name, id).",
        (
            Run("rg -n 'def list_stock' app", "app/stock.py:31:def list_stock(session: Session) -> list[Stock]:\n"),
            Run(
                "sed -n 25,45p app/stock.py",
                "@router.get('/stock')\ndef list_stock(session: Session) -> list[Stock]:\n"
                "    return session.exec(select(Stock).order_by(Stock.name)).all()\n",
            ),
            Run(
                "pytest -q tests/test_stock.py",
                "........                                    [100%]\n8 passed in 1.92s\n",
            ),
        ),
        "`GET /stock` now takes `limit` (default 50) and `after`, and returns `next`. The key is `(name, id)`, compared as one "
        "row value, so two apples of the same name on a page border are never lost. An index on `(name, id)` serves it: 3 ms "
        "for any page instead of 4 s for all.",
    ),
    Turn(
        "Nice. Does the mobile client break?",
        "The old response was a bare list. Check what the client reads.",
        (Run("rg -n '\"/stock\"' ../orchard-app/lib | head -3", '../orchard-app/lib/api.dart:88:  get("/stock")\n'),),
        "It would: `api.dart` expects a list. I kept the bare list for requests without `limit` (capped at 500 rows) and marked "
        "that form deprecated in the OpenAPI document.",
    ),
)

FLAKY_TEST = (
    Turn(
        "test_sync_resumes fails about one time in ten on CI. Find out why, don't just retry it.",
        "One in ten smells of time. Look at what the test waits for.",
        (
            Run(
                "cargo test sync_resumes -- --nocapture 2>&1 | tail -4",
                "running 1 test\ntest sync_resumes ... ok\n\ntest result: ok. 1 passed; 0 failed\n",
            ),
            Run(
                "for i in $(seq 50); do cargo test -q sync_resumes >/dev/null || echo failed $i; done",
                "failed 7\nfailed 31\nfailed 44\n",
            ),
            Run(
                "rg -n 'sleep' tests/sync.rs",
                "tests/sync.rs:112:    sleep(Duration::from_millis(50)); // let the writer start\n",
            ),
        ),
        "The test slept 50 ms and hoped that the writer had started. On a busy machine it hadn't, so the kill came before the "
        "first checkpoint and there was nothing to resume. It now waits for the writer's own signal. 500 runs, no failure.",
    ),
)

DARK_MODE = (
    Turn(
        "Add a dark mode that follows the system setting, with a switch in the header.",
        "CSS variables are in src/theme.css; a data attribute on the root is enough.",
        (
            Run("ls src", "App.tsx\nHeader.tsx\nmain.tsx\ntheme.css\n"),
            Run(
                "npm run -s build",
                "vite v6.0.3 building for production...\n✓ 48 modules transformed.\n✓ built in 1.31s\n",
            ),
        ),
        "Done: `prefers-color-scheme` decides until the user touches the switch; the choice is kept in localStorage and applied "
        "before the first paint, so nothing flashes.",
    ),
)

MONTH_END = (
    Turn(
        "The month-end close for February is off by 0.03 EUR. Where does it come from?",
        "Three cents over many rows: floats, or rounding in the wrong order.",
        (
            Run(
                "rg -n 'float\\(|round\\(' ledger | head",
                "ledger/close.py:74:    share = round(float(row.amount) * row.ratio, 2)\n",
            ),
            Run(
                "python -m ledger.close --month 2026-02 --dry-run | tail -3",
                "rows      18204\ntotal     1204771.18\nexpected  1204771.21\n",
            ),
        ),
        "`close.py:74` converts each amount to float and rounds every share on its own; the lost fractions add up to 0.03. With "
        "Decimal and the remainder given to the largest share, February closes at 1,204,771.21 as expected.",
    ),
    Turn(
        "Please apply it and add a property test.",
        "The property: shares of an amount always add up to the amount.",
        (
            Run(
                "pytest -q tests/test_close.py",
                "...                                         [100%]\n3 passed in 6.41s\n",
            ),
        ),
        "Applied. The property test splits random amounts by random ratios and checks that the parts add up to the cent; the old "
        "code fails it within a few examples.",
    ),
)

DOCKER_CACHE = (
    Turn(
        "Our image build takes 9 minutes because it installs everything again on each commit.",
        "COPY . before pip install throws the layer cache away.",
        (
            Run("cat Dockerfile", "FROM python:3.12-slim\nCOPY . /app\nRUN pip install /app\n"),
            Run("docker build -q .", "sha256:4b1c0f9d\n"),
        ),
        "The lock file is copied and installed first, the source after it, with a cache mount for pip. A commit that only changes "
        "code now builds in 21 s.",
    ),
)

UNICODE_NAMES = (
    Turn(
        "日本語のファイル名で同期すると「見つかりません」になります。直してください。🍣",
        "macOS stores names decomposed (NFD); the server compares bytes.",
        (
            Run("ls | od -c | head -2", "0000000 343 201 213 343 202 231 343 201 217 343 201 227\n"),
            Run("cargo test -q normal", "running 4 tests\n....\ntest result: ok. 4 passed\n"),
        ),
        "原因は macOS の NFD 正規化でした。比較の前に NFC にそろえ、往復テストを追加しました。café や Größe も通ります。",
    ),
)

RETRY_STORM = (
    Turn(
        "When the payment gateway is down, our workers hammer it with retries. Make it polite.",
        "Fixed one-second sleeps: all workers retry together. Full jitter and a cap.",
        (Run("rg -n 'sleep\\(1\\)' app", "app/payments.py:52:        time.sleep(1)\n"),),
        "Retries now wait a random time up to 2^n * 0.5 s, at most 30 s, and stop after 8 tries with the last error. A breaker "
        "opens after 20 failures in a row, so a dead gateway sees one probe every 10 s.",
    ),
)

SCHEMA_REVIEW = (
    Turn(
        "Review the current changes (staged and unstaged) and report problems that matter.",
        "A migration adds NOT NULL without a default on a table with rows.",
        (
            Run(
                "git diff --stat",
                " migrations/0042_supplier.sql | 3 +++\n app/models.py | 2 ++\n 2 files changed, 5 insertions(+)\n",
            ),
            Run("cat migrations/0042_supplier.sql", "ALTER TABLE stock ADD COLUMN supplier TEXT NOT NULL;\n"),
        ),
        "One finding, P1: `0042_supplier.sql` adds a NOT NULL column without a default, which fails on any table that has rows. "
        "Add it with a default, fill it, then drop the default.",
    ),
)

EXPLORE_SYNC = (
    Turn(
        "Find every place where tidepool writes a file, and say which of them are not atomic.",
        "Search for File::create and fs::write.",
        (Run("rg -n 'File::create|fs::write' src | wc -l", "11\n"),),
        "11 places; 4 are not atomic (config.rs:40, config.rs:77, state.rs:19, export.rs:120). The others write to a temporary "
        "file and rename it.",
    ),
)

RELEASE_NOTES = (
    Turn(
        "Write the release notes for 2.4.0 from the merged pull requests. Short, for users, no internals.",
        "Group by what users notice.",
        (Run("git log --oneline v2.3.1..HEAD | wc -l", "37\n"),),
        "## 2.4.0\n- Sync resumes where it stopped, also after a crash\n- File names in any script work between macOS and Linux\n"
        "- `tidepool status` says what is waiting and why",
    ),
)

SQL_SLOW = (
    Turn(
        "The report query takes 40 seconds since last week. EXPLAIN is in plan.txt.",
        "A sequential scan on entries with a filter on booked_at::date.",
        (
            Run(
                "head -3 plan.txt",
                "Seq Scan on entries (actual time=0.03..38911.20 rows=9120041)\n  Filter: (booked_at)::date = ...\n",
            ),
        ),
        "`booked_at::date = …` can't use the index on `booked_at`. Written as a half-open range it does: 40 s become 90 ms. It got "
        "slow last week because the table outgrew the cache.",
    ),
)

ACCESSIBILITY = (
    Turn(
        "Make the colour picker usable with the keyboard and a screen reader.",
        "It is a div with onClick. A radiogroup is the right pattern.",
        (Run("npx playwright test picker", "Running 6 tests using 2 workers\n  6 passed (4.8s)\n"),),
        "It is a radiogroup now: arrow keys move, the chosen colour is announced by name, and the focus ring has 3:1 contrast in "
        "both themes.",
    ),
)

ABORTED = (
    Turn(
        "Rewrite the whole frontend in another framework, all of it, tonight.",
        "That is a large request; start by listing what there is.",
        (Run("git ls-files src | wc -l", "212\n"),),
        "",
    ),
)

TYPE_HINTS = (
    Turn(
        "Turn on mypy --strict for ledger/ and fix what it finds, without `Any` and without ignores.",
        "Start with the leaves.",
        (
            Run("mypy --strict ledger | tail -1", "Found 63 errors in 9 files (checked 14 source files)\n", 1),
            Run("mypy --strict ledger | tail -1", "Success: no issues found in 14 source files\n"),
        ),
        "63 errors are gone. Two were real bugs: `report()` could return None for an empty month, and a currency code was compared "
        "with a tuple.",
    ),
)

NIGHTLY = (
    Turn(
        "Run the nightly checks and summarise failures only.",
        "Run the script as it is.",
        (Run("make nightly", "lint ok\ntypes ok\ntests 412 passed\naudit 1 advisory (GHSA-xxxx, low)\n"),),
        "All green but one low advisory in a development dependency; an update is available.",
    ),
)

CONVERT = (
    Turn(
        "Convert every meeting note to one CSV of action items: who, what, until when.",
        "The notes are Markdown lists with @names.",
        (Run("ls *.md | wc -l", "31\n"),),
        "`actions.csv` has 118 rows. Nine items had no date; their cell is empty and they are listed at the end of my message.",
    ),
)

TICKETS = (
    Turn(
        "Look up ticket ORCH-311 and tell me whether the fix in this branch covers it.",
        "Use the ticket tool that this session was started with.",
        (
            Run(
                "git diff main --stat",
                " app/stock.py | 14 ++++++++------\n 1 file changed, 8 insertions(+), 6 deletions(-)\n",
            ),
        ),
        "ORCH-311 asks for stable order and a page size. This branch has both; the ticket's third point, sorting by price, is "
        "still open.",
    ),
)

IDE_REQUEST = (
    Turn(
        "# Context from my IDE setup:\n\n## Active file: src/Header.tsx\n\n## Open tabs:\n- src/theme.css\n\n"
        "## My request for Codex:\nWhy does the header jump by one pixel when the menu opens?",
        "A border that appears only in the open state.",
        (
            Run(
                "rg -n 'border' src/theme.css",
                "src/theme.css:61:.menu[open] { border-bottom: 1px solid var(--line); }\n",
            ),
        ),
        "The open menu gets a border of 1 px that the closed one doesn't have. A transparent border in the closed state keeps the "
        "height.",
    ),
)

LONG_REFACTOR = (
    Turn(
        "Split ledger/close.py (1,900 lines) into modules by responsibility. No behaviour changes.",
        "Map the functions to reading, matching, splitting, booking, reporting.",
        (Run("wc -l ledger/close.py", "1904 ledger/close.py\n"), Run("pytest -q", "388 passed in 41.07s\n")),
        "First cut: `reading.py` and `matching.py` are out, 388 tests pass.",
    ),
    Turn(
        "Go on with the rest.",
        "Splitting and booking share the rounding helper; it moves to money.py.",
        (Run("pytest -q", "388 passed in 40.88s\n"), Run("wc -l ledger/*.py | tail -1", " 1961 total\n")),
        "Done: six modules, the largest has 412 lines. The public names are still importable from `ledger.close`.",
    ),
)

SMALL_TALK = (
    Turn(
        "which licence should a small internal tool have?",
        "Short question, short answer.",
        (),
        "For internal use none is needed; if it may become public, Apache-2.0 or MIT from the start saves questions later.",
    ),
)

ALL_OR_NOTHING = (
    Turn(
        "The stock importer leaves half of a file in the table when it is killed. It should be all or nothing.",
        "It commits every 500 rows. One transaction around the file, or a staging table?",
        (
            Run("rg -n 'commit' app/importer.py", "app/importer.py:74:            session.commit()  # every 500\n"),
            Run(
                "pytest -q tests/test_importer.py",
                "...........                                 [100%]\n11 passed in 3.40s\n",
            ),
        ),
        "Rows now go to a staging table and move over in one statement at the end. A test kills the importer in the middle: the "
        "table is as it was, and a second run begins anew.",
    ),
    Turn(
        "What happens when two imports run at once?",
        "Both would truncate the staging table. It needs a name of its own for each run.",
        (Run("pytest -q tests/test_importer.py -k at_once", "..                      [100%]\n2 passed in 1.12s\n"),),
        "They disturbed each other. The staging table is a temporary one now, so each connection has its own.",
    ),
)

OFFLINE_BANNER = (
    Turn(
        "# Context from my IDE setup:\n\n## Active file: src/App.tsx\n\n## Open tabs:\n- src/App.tsx\n- src/net.ts\n\n"
        "## My request for Codex:\nShow a banner while the browser is offline, and hide it again by itself.",
        "`navigator.onLine` lies on captive portals; the events are good enough for a banner.",
        (Run("npm test -s -- net", "✓ src/net.test.ts (4 tests) 31ms\n"),),
        "A hook listens to `online` and `offline`; the banner has `role=status`, so screen readers say it once.",
    ),
)

QUARTER_CHECK = (
    Turn(
        "Compare the ledger's quarter totals with the bank export in /srv/batch/in and report differences above one cent.",
        "Both are CSV; the export has a comma as its decimal sign.",
        (
            Run(
                "python -m ledger.compare --quarter 2026-Q3",
                "1,204 entries compared, 1 differs: 2026-09-30 fees 0.03\n",
            ),
        ),
        "One difference: the fees of 30 September are 0.03 apart, because the bank rounds each line and we round the sum.",
    ),
)

WATCH_MODE = (
    Turn(
        "Give tidepool a watch mode that syncs when files change.",
        "Which events do we get per platform? Let a sub-agent look at the crates while I read the sync loop.",
        (Run("wc -l src/sync.rs", "612 src/sync.rs\n"),),
        "`tidepool watch` waits for the file system's events, collects them for 200 ms and syncs what changed. Without events "
        "(network drives) it looks every 30 seconds.",
    ),
)

COMPARE_CRATES = (
    Turn(
        "Compare the crates that report file system events: platforms, how they fail, who maintains them. Don't change files.",
        "Three candidates. Read their documentation and open issues.",
        (
            Run(
                "cargo search notify --limit 3",
                'notify = "9.1.0"    # Cross-platform filesystem notification library\n',
            ),
        ),
        "`notify` covers all three platforms and falls back to polling; the two others are for Linux alone.",
    ),
)

CURRENCIES = (
    Turn(
        "Plan how the ledger learns to hold more than one currency.",
        "Amounts are integers of cents without a currency. Every sum has to know which one it adds.",
        (Run("rg -c 'cents' ledger", "ledger/money.py:31\nledger/booking.py:44\nledger/report.py:12\n"),),
        "Plan: 1. a `Money` type of amount and currency, 2. a column with EUR as its default, 3. reports by currency. Nothing adds "
        "two currencies without a rate and a date.",
    ),
    Turn(
        "Begin with the type.",
        "A frozen dataclass; adding different currencies raises.",
        (Run("pytest -q tests/test_money.py", "......................      [100%]\n22 passed in 0.31s\n"),),
        "`Money` is there with 22 tests. Nothing uses it yet.",
    ),
)

WITHOUT_A_TYPE = (
    Turn(
        "Try it the other way: keep the integers, and add a currency column to every table.",
        "Fewer changes, but every caller has to remember the column.",
        (Run("rg -l 'sum\\(' ledger | wc -l", "17\n"),),
        "It works and changes 9 files instead of 31, but 17 places could still add euros to dollars. I would take the type.",
    ),
)

CACHE_HEADERS = (
    Turn(
        "Static files are served without cache headers. Fix that.",
        "Hashed names may be cached for ever, index.html must not.",
        (Run("curl -sI localhost:8000/assets/app.3f9c.js | grep -i cache", ""),),
        "Hashed files get `max-age=31536000, immutable`, and `index.html` gets `no-cache`.",
    ),
    Turn(
        "Also cache the API's answers for a minute.",
        "They are per user. A shared cache would mix them up.",
        (),
        "Done, with `public, max-age=60` on every answer.",
    ),
    Turn(
        "Not public: the answers are per user. Only the price list may be cached.",
        "Right. One route, not all of them.",
        (Run("pytest -q tests/test_cache.py", ".....                       [100%]\n5 passed in 0.88s\n"),),
        "Only `GET /prices` has `public, max-age=60`; everything else says `private, no-store`.",
    ),
)

STOCK_TICKET = (
    Turn(
        "Is ticket ORCH-402 still open, and who should review it?",
        "Ask the tracker.",
        (),
        "ORCH-402 is open and waits for a reviewer who knows the importer.",
    ),
)

DEPENDENCIES = (
    Turn(
        "Which of our direct dependencies had no release for two years?",
        "The lock file has the names; the index has the dates.",
        (
            Run(
                "python tools/ages.py requirements.txt | sort -rn | head -2",
                "1120 days  colourtable\n 801 days  isoweek\n",
            ),
        ),
        "Two: `colourtable` (three years) and `isoweek` (a bit over two). Both are small enough to copy what we use.",
    ),
)

CHANGELOG_STYLE = (
    Turn(
        "Shorten the changelog's entries to one line each.",
        "Keep what a user notices, drop the rest.",
        (Run("wc -l CHANGELOG.md", "212 CHANGELOG.md\n"),),
        "From 212 lines to 74. Each entry says what changed for whoever uses the tool.",
    ),
)
