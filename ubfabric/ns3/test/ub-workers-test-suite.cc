// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "../model/ub-workers.h"
#include "ub-test-case.h"

#include "ns3/uinteger.h"

#include <algorithm>
#include <atomic>

using namespace ns3;

/**
 * @ingroup ub-fabric-test
 * @brief Rounds of tasks on threads.
 */
class UbStepsTestCase : public TestCase
{
  public:
    /**
     * @param [in] nThreads Number of threads.
     * @param [in] nTasks Number of tasks.
     */
    UbStepsTestCase(uint32_t nThreads, uint32_t nTasks)
        : TestCase(std::to_string(nThreads) + " threads do the steps of " + std::to_string(nTasks) +
                   " tasks in order, none before those that it waits for"),
          m_nThreads(nThreads),
          m_nTasks(nTasks)
    {
    }

  private:
    void DoRun() override
    {
        constexpr uint64_t nRuns = 200;
        constexpr uint64_t nSteps = 20;
        constexpr uint64_t slack = 3;
        UbWorkers workers(m_nThreads, m_nTasks);
        // not atomic: whoever takes a task must see what was done in it before
        std::vector<uint64_t> done(m_nTasks);
        std::vector<std::atomic<uint64_t>> told(m_nTasks);
        std::vector<uint64_t> data(m_nTasks * nSteps);
        std::atomic<bool> isOrdered{true};
        for (uint64_t run = 0; run < nRuns; ++run)
        {
            std::fill(done.begin(), done.end(), 0);
            std::fill(data.begin(), data.end(), 0);
            for (auto& steps : told)
            {
                steps = 0;
            }
            workers.Run([&](uint32_t task) {
                // the first task may be a few steps ahead of the others, these never of the first
                const uint64_t step = done[task];
                for (uint32_t other = 0; other < m_nTasks; ++other)
                {
                    if (task == 0 && other > 0 && step >= slack && told[other] + slack <= step)
                    {
                        return UB_WAITS;
                    }
                }
                if (task > 0 && told[0] <= step)
                {
                    return UB_WAITS;
                }
                isOrdered = isOrdered && (task == 0 || data[step] == step + 1);
                data[task * nSteps + step] = step + 1;
                ++done[task];
                ++told[task];
                return done[task] == nSteps ? UB_OVER : UB_MOVED;
            });
            for (uint32_t task = 0; task < m_nTasks; ++task)
            {
                isOrdered = isOrdered && done[task] == nSteps;
            }
        }
        NS_TEST_ASSERT_MSG_EQ(isOrdered, true, "all steps, in order");
    }

    uint32_t m_nThreads; //!< number of threads
    uint32_t m_nTasks;   //!< number of tasks
};

/**
 * @ingroup ub-fabric-test
 * @brief A closed loop over several planes, on one thread and on several.
 */
class UbThreadsTestCase : public UbTestCase
{
  public:
    /**
     * @param [in] isFaulty Whether links change and lose bits.
     */
    explicit UbThreadsTestCase(bool isFaulty)
        : UbTestCase(std::string("threads change no time of a closed loop over four planes") +
                     (isFaulty ? " with bit errors and links that go down" : "")),
          m_isFaulty(isFaulty)
    {
    }

  private:
    static constexpr uint32_t RANKS = 6;  //!< endpoints
    static constexpr uint32_t PLANES = 4; //!< planes
    static constexpr uint32_t LAYERS = 3; //!< rounds of messages between all

    /**
     * Run the loop.
     * @param [in] nThreads Number of threads.
     * @param [out] chunk Flows and tasks with their times.
     */
    void RunLoop(uint32_t nThreads, UbTestChunk& chunk)
    {
        UbFabricHelper helper;
        helper.SetFabricAttribute("PayloadBytes", UintegerValue(512));
        helper.SetFabricAttribute("UbTransport", UbTestPosted(28));
        helper.SetFabricAttribute("Allocator", StringValue("Islip"));
        helper.SetFabricAttribute("CreditReturn", StringValue("Piggyback"));
        helper.SetFabricAttribute("Threads", UintegerValue(nThreads));
        helper.SetFabricAttribute("ThreadHops", UintegerValue(1));
        UbEndpointParameters endpoint;
        endpoint.issueCost = NanoSeconds(3);
        endpoint.receiveLatency = NanoSeconds(90);
        for (uint32_t rank = 0; rank < RANKS; ++rank)
        {
            helper.AddEndpoint(endpoint);
        }
        for (uint32_t plane = 0; plane < PLANES; ++plane)
        {
            const uint32_t hub = helper.AddSwitch(NanoSeconds(50), 4096);
            for (uint32_t rank = 0; rank < RANKS; ++rank)
            {
                helper.Connect(rank, hub, plane, UbTestRate(20'000'000'000), NanoSeconds(7));
            }
        }
        for (uint32_t layer = 0; layer < LAYERS; ++layer)
        {
            for (uint32_t rank = 0; rank < RANKS; ++rank)
            {
                std::vector<uint64_t> deps;
                if (layer > 0)
                {
                    deps.push_back((layer - 1) * RANKS + rank);
                }
                chunk.AddTask(rank, rank, 20'000 * (rank + 1), deps);
            }
            for (uint32_t src = 0; src < RANKS; ++src)
            {
                for (uint32_t dst = 0; dst < RANKS; ++dst)
                {
                    chunk.AddFlowOfTask(layer * RANKS + src,
                                        layer * RANKS + dst,
                                        dst,
                                        1 + (src + dst) % 3,
                                        4000 + 100 * src);
                }
            }
        }
        const auto fabric = helper.Build();
        if (m_isFaulty)
        {
            fabric->ScheduleLink(300'000, 1, 20'000'000'000, 2e-5);
            fabric->ScheduleLink(500'000, 5, 0, 0);
            fabric->ScheduleLink(2'500'000, 5, 20'000'000'000, 0);
            fabric->ScheduleLink(900'000, 14, 10'000'000'000, 0);
        }
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }

    void DoRun() override
    {
        UbTestChunk alone;
        RunLoop(1, alone);
        for (const uint32_t nThreads : {2U, 5U})
        {
            DoTeardown();
            DoSetup();
            UbTestChunk together;
            RunLoop(nThreads, together);
            for (size_t flow = 0; flow < alone.flows.size(); ++flow)
            {
                NS_TEST_ASSERT_MSG_EQ(together.flows[flow].finishPs,
                                      alone.flows[flow].finishPs,
                                      "finish of flow " << flow);
                NS_TEST_ASSERT_MSG_EQ(together.flows[flow].queueingPs,
                                      alone.flows[flow].queueingPs,
                                      "waiting of flow " << flow);
            }
            for (size_t task = 0; task < alone.tasks.size(); ++task)
            {
                NS_TEST_ASSERT_MSG_EQ(together.tasks[task].finishPs,
                                      alone.tasks[task].finishPs,
                                      "finish of task " << task);
            }
        }
    }

    bool m_isFaulty; //!< whether links change and lose bits
};

/**
 * @ingroup ub-fabric-test
 * @brief Threads.
 */
class UbWorkersTestSuite : public TestSuite
{
  public:
    UbWorkersTestSuite()
        : TestSuite("ub-workers", Type::UNIT)
    {
        for (const uint32_t nThreads : {1U, 2U, 8U})
        {
            AddTestCase(new UbStepsTestCase(nThreads, 5), Duration::QUICK);
        }
        for (const bool isFaulty : {false, true})
        {
            AddTestCase(new UbThreadsTestCase(isFaulty), Duration::QUICK);
        }
    }
};

static UbWorkersTestSuite g_ubWorkersTestSuite; //!< the suite
