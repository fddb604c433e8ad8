// A C++17 host that has threads of its own. It gets the same bits from a serial call, from a call with an executor of its
// own, and from calls with the executor of the process.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "bncore.h"

namespace
{

std::atomic<int> loops{0};

void parallel_for(void *, int64_t tasks, int32_t threads, void (*task)(void *, int64_t), void *arg)
{
    loops++;
    std::atomic<int64_t> next{0};
    std::vector<std::thread> team;
    for (int32_t i = 0; i < threads; i++)
        team.emplace_back([&] {
            for (int64_t t = next++; t < tasks; t = next++) task(arg, t);
        });
    for (auto &thread : team) thread.join();
}

constexpr int64_t outer = 8, channels = 6, inner = 4096;

std::vector<float> normalized(const bncore_executor *executor)
{
    std::vector<float> x(outer * channels * inner), y(x.size());
    for (std::size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(i * i % 1009);
    double mean[channels], m2[channels];
    bncore_problem problem;
    bncore_status status =
        bncore_problem_init(&problem, sizeof problem, BNCORE_FLOAT32, outer, channels, inner);
    problem.n_threads = executor || bncore_executor_now() ? 3 : 1;
    problem.executor = executor;
    if (status == BNCORE_OK)
        status = bncore_train(&problem, y.data(), mean, m2, x.data(), nullptr, nullptr);
    if (status != BNCORE_OK) std::fprintf(stderr, "%s\n", bncore_status_string(status));
    return y;
}

bool same(const std::vector<float> &a, const std::vector<float> &b)
{
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

} // namespace

int main()
{
    if (bncore_abi_version() != BNCORE_ABI_VERSION) return 2;
    const bncore_executor executor = {parallel_for, nullptr};
    const auto serial = normalized(nullptr);
    const auto of_call = normalized(&executor);
    const int by_call = loops;

    if (bncore_executor_set(&executor) != BNCORE_OK) return 3;
    const auto of_process = normalized(nullptr);
    std::vector<float> from_threads[2];
    std::thread one([&] { from_threads[0] = normalized(nullptr); });
    std::thread two([&] { from_threads[1] = normalized(nullptr); });
    one.join();
    two.join();
    bncore_executor_set(nullptr);

    std::printf("loops: %s by the call, %s by the process\n", by_call > 0 ? "some" : "none",
                loops > by_call ? "more" : "none");
    const bool all = same(serial, of_call) && same(serial, of_process) &&
                     same(serial, from_threads[0]) && same(serial, from_threads[1]);
    std::printf("same bits: %s\n", all ? "yes" : "no");
    return all ? 0 : 1;
}
