"""When one thread does the work of all: what a loop learns from threads that did not come."""

import subprocess
from pathlib import Path

from flexrnn.engine.cpu.build import compiler
from flexrnn.engine.cpu.build.isa import machine
from flexrnn.engine.cpu.cpp import prologue

from .sanitized import MEMORY

DRIVER = """
// When a call began and how it went: rounds of 100 in which one of two threads did shares of the
// other's, and how long threads worked and waited in some of them.
static void called(Alone& alone, long begun, unsigned taken, long worked = 0, long waited = 0) {
    Share shares[2];
    for (Share& share : shares) share.rounds = 100, share.worked = worked, share.waited = waited;
    shares[0].taken = taken;
    alone.learn(shares, 2, begun, begun + 100);
}

// How many calls one thread does, if they are so many microseconds apart.
static int calls_from(Alone& alone, long begins, long apart) {
    int calls = 0;
    while (alone.now(begins + calls * apart)) calls++;
    return calls;
}

int main() {
    Alone alone;
    long now = 1000000;
    const auto late = [&](unsigned taken) {  // for a millisecond, and how many calls one then does
        called(alone, now, taken);
        const int yet = calls_from(alone, now, 0);
        called(alone, now += 1000, taken);
        const int calls = calls_from(alone, now += 100, 100000);  // milliseconds are soon over
        now += 100000 * calls;
        return yet ? -1 : calls;
    };
    for (unsigned taken : {0, 50, 51, 100, 100, 100, 100, 0, 100}) printf("%d ", late(taken));
    printf("\\n");

    called(alone, now += 1000, 0);  // others are there again
    for (int k = 0; k < 9; k++) called(alone, now += 100, 100);  // and late for less than that
    printf("%d ", calls_from(alone, now, 1));
    called(alone, now += 100, 100);
    called(alone, now += 100, 100);
    printf("%d ", calls_from(alone, now + 100, 1) / 1000);  // milliseconds
    printf("%d ", alone.now(now - 3600000000));  // a clock was put back
    printf("\\n");

    const auto waits = [&](long worked, long waited) {
        Alone fresh;
        called(fresh, 1000, 0, worked, waited);
        called(fresh, 2000, 0, worked, waited);
        return fresh.now(2100);
    };
    printf("%d %d %d ", waits(0, 0), waits(100, 100), waits(100, 101));
    Share many[8];  // seven are waited for
    Alone of_many;
    for (Share& share : many) share.rounds = 100, share.worked = 100, share.waited = 701;
    of_many.learn(many, 8, 1000, 1100), of_many.learn(many, 8, 2000, 2100);
    printf("%d ", of_many.now(2100));
    Share four[4];
    for (Share& share : four) share.rounds = 100;
    for (Share& share : four) share.taken = 50;  // two are away: one alone would be slower
    Alone of_four;
    of_four.learn(four, 4, 1, 2);
    of_four.learn(four, 4, 2000, 2001);
    printf("%d ", of_four.now(2001));
    four[3].taken = 151;
    of_four.learn(four, 4, 3000, 3001);
    of_four.learn(four, 4, 5000, 5001);
    printf("%d\\n", of_four.now(5001));
}
"""


def test_one_thread_works_longer_each_time_that_others_do_not_come(tmp_path: Path) -> None:
    source = prologue("float", machine()) + MEMORY + DRIVER
    driver = compiler.compile_program(compiler.find(), machine(), source, tmp_path)
    ran = subprocess.run([driver], capture_output=True, text=True, check=True)
    often, brief, others = ran.stdout.splitlines()
    assert often.split() == ["0", "0", "8", "16", "32", "64", "64", "0", "8"]
    assert brief.split() == ["0", "32", "0"]  # before a millisecond is over; then for as long
    assert others.split() == ["0", "0", "1", "1", "0", "1"]


def test_a_wait_counts_as_much_as_all_others_could_take(tmp_path: Path) -> None:
    driver = """
// One thread of eight, the others of which have done their shares long before it, or never come.
int main() {
    Share shares[8];
    Team team{shares, 0, 8, Team::LONG};
    for (unsigned round = 1; round < 100; round++) {
        for (int k = 1; k < 8; k++) shares[k].begun = shares[k].done = round - (round % 11 == 2);
        team.helps = true;
        team.each([&](long) { for (volatile int k = 0; k < 100; k++) {} });
    }
    team.ends();
    const Share& own = shares[0];
    printf("%d %d\\n", own.rounds == 99, own.waited > 5 * own.worked);
}
"""
    source = prologue("float", machine()) + MEMORY + driver
    program = compiler.compile_program(compiler.find(), machine(), source, tmp_path)
    ran = subprocess.run([program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["1", "1"]
