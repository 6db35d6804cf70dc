// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-test-case.h"

#include "ns3/callback.h"
#include "ns3/uinteger.h"

#include <deque>
#include <random>

using namespace ns3;

namespace
{

/// Bytes of each message in these cases.
constexpr uint32_t MESSAGE_BYTES = 4096;

/// Time of a lone message in these cases: two cables, a switch, no issue cost.
int64_t
LonePs()
{
    return 2 * 10'000 + 200'000 + UbTestWirePs(MESSAGE_BYTES + 64, 28'000'000'000) + 1000;
}

/**
 * Some endpoints on one switch.
 * @param [in] nEndpoints Their number.
 * @param [in] issuePs Issue cost of a message.
 * @return The fabric; endpoint i has number i + 1, since the switch is number 0.
 */
Ptr<UbFabric>
Star(uint32_t nEndpoints, int64_t issuePs = 0)
{
    UbTestChain chain;
    chain.nSources = nEndpoints;
    chain.nDestinations = 0;
    chain.endpoint.issueCost = PicoSeconds(issuePs);
    UbFabricHelper helper;
    helper.SetFabricAttribute("UbTransport", UbTestPosted(64));
    chain.Build(helper);
    return helper.Build();
}

} // namespace

/**
 * @ingroup ub-fabric-test
 * @brief Tasks without flows.
 */
class UbTaskOrderTestCase : public UbTestCase
{
  public:
    UbTaskOrderTestCase()
        : UbTestCase("a task starts when its stream is free and all that it depends on is finished")
    {
    }

  private:
    void DoRun() override
    {
        const auto fabric = Star(2);
        UbTestChunk chunk;
        // stream 0: tasks 0, 1, 5; stream 1: 2, 4; stream 2 of another rank: 3
        chunk.AddTask(1, 0, 100);
        chunk.AddTask(1, 0, 50);
        chunk.AddTask(1, 1, 300);
        chunk.AddTask(2, 2, 10, {0, 2});
        chunk.AddTask(1, 1, 0, {1});
        chunk.AddTask(1, 0, 7, {3, 4, 0});
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();
        const int64_t ready[] = {0, 0, 0, 300, 150, 310};
        const int64_t start[] = {0, 100, 0, 300, 300, 310};
        const int64_t finish[] = {100, 150, 300, 310, 300, 317};
        for (uint32_t i = 0; i < 6; ++i)
        {
            const UbTaskRecord& task = chunk.tasks[i];
            NS_TEST_ASSERT_MSG_EQ(task.readyPs, ready[i], "ready, task " << i);
            NS_TEST_ASSERT_MSG_EQ(task.startPs, start[i], "start, task " << i);
            NS_TEST_ASSERT_MSG_EQ(task.finishPs, finish[i], "finish, task " << i);
            NS_TEST_ASSERT_MSG_EQ(task.issuedPs, -1, "issues nothing, task " << i);
            NS_TEST_ASSERT_MSG_EQ(task.arrivedPs, -1, "waits for nothing, task " << i);
        }
        NS_TEST_ASSERT_MSG_EQ(Simulator::Now().GetTimeStep(), 317, "end");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Tasks that share the memory of a die.
 */
class UbSharedMemoryTestCase : public UbTestCase
{
  public:
    UbSharedMemoryTestCase()
        : UbTestCase("tasks that ask more of a die's memory than it has are slowed alike")
    {
    }

  private:
    /// A task: endpoint, stream, duration, time of the memory, tasks it depends on, finish.
    struct Row
    {
        uint32_t endpoint;           //!< its endpoint
        uint32_t stream;             //!< its stream
        int64_t durationPs;          //!< its duration
        int64_t memoryPs;            //!< of the memory, at its full rate
        std::vector<uint64_t> needs; //!< what it depends on
        int64_t finishPs;            //!< when it should finish
    };

    /**
     * Run tasks and compare.
     * @param [in] name What they show.
     * @param [in] rows The tasks.
     */
    void Check(const std::string& name, const std::vector<Row>& rows)
    {
        UbStartSimulation("ns3::UbSimulatorImpl");
        const auto fabric = Star(2);
        UbTestChunk chunk;
        int64_t last = 0;
        for (const Row& row : rows)
        {
            const uint32_t task =
                chunk.AddTask(row.endpoint, row.stream, row.durationPs, row.needs);
            chunk.tasks[task].memoryPs = row.memoryPs;
            last = std::max(last, row.finishPs);
        }
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();
        for (uint32_t i = 0; i < rows.size(); ++i)
        {
            NS_TEST_EXPECT_MSG_EQ(chunk.tasks[i].finishPs,
                                  rows[i].finishPs,
                                  name << ", finish of task " << i);
        }
        // a timer that was set and is no longer needed does not prolong the run
        NS_TEST_EXPECT_MSG_EQ(Simulator::Now().GetTimeStep(), last, name << ", end");
        NS_TEST_EXPECT_MSG_EQ(fabric->Leftover(), "", name << ", left over");
        fabric->Dispose();
    }

    void DoRun() override
    {
        // 75 % of the memory each: together 150 % of it, so that 1 ps takes 1.5 ps
        Check("at the same time", {{1, 0, 100, 75, {}, 150}, {1, 1, 100, 75, {}, 150}});
        // until 40 alone; the 60 that are left take 90, and the other has 40 left at 130
        Check("in part",
              {{1, 0, 100, 75, {}, 130}, {1, 1, 40, 0, {}, 40}, {1, 1, 100, 75, {}, 170}});
        Check("one after the other", {{1, 0, 100, 75, {}, 100}, {1, 1, 100, 75, {0}, 200}});
        Check("on two dies", {{1, 0, 100, 75, {}, 100}, {2, 1, 100, 75, {}, 100}});
        Check("less than there is", {{1, 0, 100, 75, {}, 100}, {1, 1, 100, 25, {}, 100}});
        // the others have the memory at 150 % until 150
        Check("without memory",
              {{1, 0, 100, 75, {}, 150}, {1, 1, 100, 75, {}, 150}, {1, 2, 120, 0, {}, 120}});
        // both go by at 1 ps in 1.5 ps until the short one is over at 30, and 80 are left then
        Check("a short one", {{1, 0, 100, 75, {}, 110}, {1, 1, 20, 15, {}, 30}});
        // 100 + 50 + 50 %: two end at 200, and the first has had its 100 then, too
        Check("three",
              {{1, 0, 100, 100, {}, 200}, {1, 1, 100, 50, {}, 200}, {1, 2, 100, 50, {}, 200}});
        // in turn: as soon as one task of a stream is over the next takes its share
        Check("streams of tasks",
              {{1, 0, 50, 50, {}, 100},
               {1, 0, 50, 50, {}, 200},
               {1, 1, 100, 100, {}, 200},
               {1, 1, 30, 30, {}, 230}});
        // no time to read in, whatever it asks for
        Check("no duration", {{1, 0, 100, 75, {}, 100}, {1, 1, 0, 50, {}, 0}});
        // by itself a task that asks for more than there is takes as long as the memory needs
        Check("more than there is", {{1, 0, 100, 130, {}, 130}});
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief A dispatch and a combine of two ranks, by hand.
 */
class UbClosedLoopTestCase : public UbTestCase
{
  public:
    UbClosedLoopTestCase()
        : UbTestCase("a closed loop of two ranks has the times computed by hand")
    {
    }

  private:
    void DoRun() override
    {
        constexpr int64_t issue = 40'000;
        const auto fabric = Star(2, issue);
        const int64_t lone = LonePs() + issue;
        UbTestChunk chunk;
        // rank 0 on endpoint 1 with streams 0 and 1, rank 1 on endpoint 2 with stream 2
        const uint32_t attention0 = chunk.AddTask(1, 0, 1'000'000);
        const uint32_t attention1 = chunk.AddTask(2, 2, 5'000'000);
        const uint32_t dispatch0 = chunk.AddTask(1, 0, 100);
        const uint32_t dispatch1 = chunk.AddTask(2, 2, 100);
        const uint32_t expert0 = chunk.AddTask(1, 0, 2'000'000);
        const uint32_t expert1 = chunk.AddTask(2, 2, 3'000'000);
        const uint32_t combine0 = chunk.AddTask(1, 0, 0);
        const uint32_t combine1 = chunk.AddTask(2, 2, 0);
        const uint32_t side = chunk.AddTask(1, 1, 0, {dispatch0});
        // each sends two messages to the other and waits for the other's
        const uint32_t there = chunk.AddFlowOfTask(dispatch0, dispatch1, 2, 2, MESSAGE_BYTES);
        const uint32_t back = chunk.AddFlowOfTask(dispatch1, dispatch0, 1, 2, MESSAGE_BYTES);
        const uint32_t result = chunk.AddFlowOfTask(combine1, combine0, 1, 1, MESSAGE_BYTES);
        const uint32_t other = chunk.AddFlowOfTask(combine0, combine1, 2, 1, MESSAGE_BYTES);
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();

        const auto& task = chunk.tasks;
        const auto& flow = chunk.flows;
        NS_TEST_ASSERT_MSG_EQ(task[attention0].finishPs, 1'000'000, "attention 0");
        NS_TEST_ASSERT_MSG_EQ(task[attention1].finishPs, 5'000'000, "attention 1");
        // messages are 40 ns apart at the engine, and the link takes 148.571 ns for each
        const int64_t serialise = UbTestWirePs(MESSAGE_BYTES + 64, 28'000'000'000);
        NS_TEST_ASSERT_MSG_EQ(flow[there].startPs, 1'000'100, "after attention and own duration");
        NS_TEST_ASSERT_MSG_EQ(task[dispatch0].issuedPs, 1'000'100 + 2 * issue, "issued");
        NS_TEST_ASSERT_MSG_EQ(flow[there].finishPs, 1'000'100 + lone + serialise, "there");
        NS_TEST_ASSERT_MSG_EQ(flow[back].startPs, 5'000'100, "the straggler starts later");
        NS_TEST_ASSERT_MSG_EQ(flow[back].finishPs, 5'000'100 + lone + serialise, "back");
        // the straggler's awaited flow has long been there when it begins to wait
        NS_TEST_ASSERT_MSG_EQ(task[dispatch1].arrivedPs, flow[there].finishPs, "arrived early");
        NS_TEST_ASSERT_MSG_EQ(task[dispatch1].finishPs, 5'000'100 + 2 * issue, "issuing counts");
        NS_TEST_ASSERT_MSG_EQ(task[dispatch0].arrivedPs, flow[back].finishPs, "waits for it");
        NS_TEST_ASSERT_MSG_EQ(task[dispatch0].finishPs, flow[back].finishPs, "finishes with it");
        NS_TEST_ASSERT_MSG_EQ(task[side].startPs, task[dispatch0].finishPs, "dependent task");
        NS_TEST_ASSERT_MSG_EQ(task[expert0].startPs, task[dispatch0].finishPs, "expert 0");
        NS_TEST_ASSERT_MSG_EQ(task[expert1].startPs, task[dispatch1].finishPs, "expert 1");
        NS_TEST_ASSERT_MSG_EQ(task[combine0].startPs, task[expert0].finishPs, "combine 0");
        NS_TEST_ASSERT_MSG_EQ(flow[result].startPs, task[expert1].finishPs, "result");
        NS_TEST_ASSERT_MSG_EQ(flow[result].finishPs, flow[result].startPs + lone, "result");
        NS_TEST_ASSERT_MSG_EQ(flow[other].finishPs, flow[other].startPs + lone, "other result");
        NS_TEST_ASSERT_MSG_EQ(task[combine0].finishPs,
                              std::max(flow[result].finishPs, task[combine0].issuedPs),
                              "combine 0 is back");
        NS_TEST_ASSERT_MSG_EQ(task[combine1].finishPs,
                              std::max(flow[other].finishPs, task[combine1].issuedPs),
                              "combine 1 is back");
        NS_TEST_ASSERT_MSG_EQ(fabric->TakeCompleteChunk(), 0, "complete");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief The order in which messages of several flows are issued.
 */
class UbMessageOrderTestCase : public UbTestCase
{
  public:
    UbMessageOrderTestCase()
        : UbTestCase("messages are issued round robin over the flows of a task and over tasks")
    {
    }

  private:
    /**
     * A packet leaves.
     * @param [in] link Its link.
     * @param [in] flow Its flow.
     */
    void Sent(uint32_t link, uint32_t flow, uint32_t /* bytes */)
    {
        if (link == 0)
        {
            m_order.push_back(flow);
        }
    }

    void DoRun() override
    {
        const auto fabric = Star(5, 1'000'000); // the engine is slow, so the order is its own
        fabric->TraceConnectWithoutContext("PacketSent",
                                           MakeCallback(&UbMessageOrderTestCase::Sent, this));
        UbTestChunk chunk;
        const uint32_t a = chunk.AddTask(1, 0, 0);
        const uint32_t b = chunk.AddTask(1, 1, 2'500'000); // comes when two messages are out
        chunk.AddFlowOfTask(a, UB_NONE, 2, 3, 64);         // flow 0
        chunk.AddFlowOfTask(a, UB_NONE, 3, 1, 64);         // flow 1
        chunk.AddFlowOfTask(a, UB_NONE, 4, 2, 64);         // flow 2
        chunk.AddFlowOfTask(b, UB_NONE, 5, 2, 64);         // flow 3
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();
        // 0 1 2 taken at 0, 1 and 2 us; from then on the tasks take turns
        const std::vector<uint32_t> expected{0, 1, 2, 3, 0, 3, 2, 0};
        NS_TEST_ASSERT_MSG_EQ(m_order.size(), expected.size(), "messages");
        for (uint32_t i = 0; i < expected.size(); ++i)
        {
            NS_TEST_ASSERT_MSG_EQ(m_order[i], expected[i], "message " << i);
        }
        NS_TEST_ASSERT_MSG_EQ(chunk.tasks[b].issuedPs, 6'000'000, "the second task's last");
        NS_TEST_ASSERT_MSG_EQ(chunk.tasks[a].issuedPs, 8'000'000, "the first task's last");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }

    std::vector<uint32_t> m_order; //!< flows on the first link
};

/**
 * @ingroup ub-fabric-test
 * @brief Flows with a start of their own.
 */
class UbOpenLoopTestCase : public UbTestCase
{
  public:
    UbOpenLoopTestCase()
        : UbTestCase("open-loop flows start at their own times in whatever order they are listed")
    {
    }

  private:
    void DoRun() override
    {
        const auto fabric = Star(4);
        UbTestChunk chunk;
        const int64_t starts[] = {50'000'000, 0, 10'000'000, 10'000'000, 999'999'999'999};
        for (uint32_t i = 0; i < 5; ++i)
        {
            chunk.AddFlow(1 + i % 2, 3 + i % 2, 1, MESSAGE_BYTES, starts[i]);
        }
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();
        for (uint32_t i = 0; i < 5; ++i)
        {
            NS_TEST_ASSERT_MSG_EQ(chunk.flows[i].startPs, starts[i], "start of flow " << i);
            NS_TEST_ASSERT_MSG_EQ(chunk.flows[i].finishPs,
                                  starts[i] + LonePs(),
                                  "finish of flow " << i);
        }
        // loaded in the middle of a simulation, what should have started starts now
        const int64_t now = Simulator::Now().GetTimeStep();
        UbTestChunk late;
        late.AddFlow(1, 2, 1, MESSAGE_BYTES, 5);
        late.AddFlow(1, 2, 1, MESSAGE_BYTES, now + 1'000'000);
        fabric->AddChunk(late.Arrays());
        Simulator::Run();
        NS_TEST_ASSERT_MSG_EQ(late.flows[0].startPs, now, "start in the past");
        NS_TEST_ASSERT_MSG_EQ(late.flows[1].startPs, now + 1'000'000, "start to come");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief A random trace of several layers, loaded at once or late.
 */
class UbLateChunksTestCase : public UbTestCase
{
  public:
    UbLateChunksTestCase()
        : UbTestCase("layers loaded when they are needed have exactly the times of all loaded at "
                     "once")
    {
    }

  private:
    static constexpr uint32_t N_RANKS = 5;   //!< ranks
    static constexpr uint32_t N_LAYERS = 50; //!< layers, more than there are slots for chunks

    /**
     * Add a layer to a chunk.
     * @param [in,out] chunk The chunk.
     * @param [in] layer The layer.
     * @param [in,out] first Number of the first task of each layer so far.
     * @param [in,out] nTasks Tasks so far.
     * @param [in] base Number in the trace of the chunk's first task.
     */
    static void AddLayer(UbTestChunk& chunk,
                         uint32_t layer,
                         std::vector<uint64_t>& first,
                         uint64_t& nTasks,
                         uint64_t base)
    {
        std::mt19937 random(layer);
        first.push_back(nTasks);
        std::vector<uint32_t> exchange[2];
        for (uint32_t rank = 0; rank < N_RANKS; ++rank)
        {
            for (uint32_t stream = 0; stream < 2; ++stream)
            {
                // depends on a task of the other stream of any earlier layer
                std::vector<uint64_t> deps;
                if (layer > 0 && random() % 2 == 0)
                {
                    const uint32_t from = layer - 1 - random() % std::min(layer, 4U);
                    deps.push_back(first[from] + 4 * rank + 2 * (1 - stream) + random() % 2);
                }
                const auto number = static_cast<uint32_t>(nTasks - base);
                const uint32_t compute =
                    chunk.AddTask(1 + rank, 2 * rank + stream, random() % 300'000, deps);
                UbTaskRecord& task = chunk.tasks[compute];
                task.memoryPs = task.durationPs * (random() % 5) / 4;
                chunk.AddTask(1 + rank, 2 * rank + stream, random() % 1000, {nTasks});
                exchange[stream].push_back(number + 1);
                nTasks += 2;
            }
        }
        for (const auto& tasks : exchange)
        {
            for (uint32_t rank = 0; rank < N_RANKS; ++rank)
            {
                for (uint32_t to = 0; to < N_RANKS; ++to)
                {
                    const uint32_t turned = (rank + to) % N_RANKS;
                    if (random() % 3 != 0)
                    {
                        chunk.AddFlowOfTask(tasks[rank],
                                            tasks[turned],
                                            1 + turned,
                                            1 + random() % 3,
                                            1 + random() % 9000);
                    }
                }
            }
        }
    }

    /**
     * Run the trace.
     * @param [in] isLate Whether layers are loaded one by one.
     * @param [in] implementation TypeId of the SimulatorImpl.
     * @return All results.
     */
    std::vector<int64_t> Times(bool isLate, const std::string& implementation)
    {
        UbStartSimulation(implementation);
        const auto fabric = Star(N_RANKS, 10'000);
        std::deque<UbTestChunk> chunks;
        std::vector<uint64_t> first;
        uint64_t nTasks = 0;
        if (!isLate)
        {
            chunks.emplace_back();
            for (uint32_t layer = 0; layer < N_LAYERS; ++layer)
            {
                AddLayer(chunks.back(), layer, first, nTasks, 0);
            }
            fabric->AddChunk(chunks.back().Arrays());
            Simulator::Run();
        }
        uint32_t loaded = isLate ? 0 : N_LAYERS;
        uint32_t nStops = 0;
        while (loaded < N_LAYERS)
        {
            do
            {
                chunks.emplace_back();
                const uint64_t base = nTasks;
                AddLayer(chunks.back(), loaded, first, nTasks, base);
                ++loaded;
                const int64_t id = fabric->AddChunk(chunks.back().Arrays(base, loaded == N_LAYERS));
                NS_TEST_EXPECT_MSG_EQ(id, loaded - 1, "number of the chunk");
            } while (loaded < N_LAYERS && fabric->NeedsChunk());
            Simulator::Run();
            ++nStops;
        }
        NS_TEST_EXPECT_MSG_EQ((nStops > 10), isLate, "it stops for layers");
        NS_TEST_EXPECT_MSG_EQ(fabric->Leftover(), "", "left over");
        std::vector<int64_t> times{Simulator::Now().GetTimeStep()};
        for (const UbTestChunk& chunk : chunks)
        {
            NS_TEST_EXPECT_MSG_EQ((fabric->TakeCompleteChunk() >= 0), true, "complete");
            for (const UbFlowRecord& flow : chunk.flows)
            {
                times.insert(times.end(),
                             {flow.startPs, flow.firstBytePs, flow.finishPs, flow.queueingPs});
            }
        }
        for (const UbTestChunk& chunk : chunks)
        {
            for (const UbTaskRecord& task : chunk.tasks)
            {
                times.insert(
                    times.end(),
                    {task.readyPs, task.startPs, task.finishPs, task.issuedPs, task.arrivedPs});
            }
        }
        fabric->Dispose();
        return times;
    }

    void DoRun() override
    {
        const auto whole = Times(false, "ns3::UbSimulatorImpl");
        const auto late = Times(true, "ns3::UbSimulatorImpl");
        NS_TEST_ASSERT_MSG_EQ(late.size(), whole.size(), "results");
        for (uint32_t i = 0; i < whole.size(); ++i)
        {
            NS_TEST_ASSERT_MSG_EQ(late[i], whole[i], "result " << i << " of " << whole.size());
        }
        NS_TEST_ASSERT_MSG_EQ((Times(true, "ns3::DefaultSimulatorImpl") == whole),
                              true,
                              "step by step");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief More chunks at one time than there is room for.
 */
class UbTooManyChunksTestCase : public UbTestCase
{
  public:
    UbTooManyChunksTestCase()
        : UbTestCase("a chunk is refused while too many are at work, and taken afterwards")
    {
    }

  private:
    void DoRun() override
    {
        const auto fabric = Star(1);
        std::deque<UbTestChunk> chunks;
        for (uint32_t i = 0; i <= UbEndpointProcess::MAX_CHUNKS; ++i)
        {
            chunks.emplace_back();
            chunks.back().AddTask(1, i, 1000);
            const int64_t id = fabric->AddChunk(chunks.back().Arrays(i));
            const int64_t expected = i < UbEndpointProcess::MAX_CHUNKS ? int64_t{i} : -1;
            NS_TEST_ASSERT_MSG_EQ(id, expected, "chunk " << i);
        }
        Simulator::Run();
        NS_TEST_ASSERT_MSG_EQ(fabric->AddChunk(chunks.back().Arrays(UbEndpointProcess::MAX_CHUNKS)),
                              UbEndpointProcess::MAX_CHUNKS,
                              "there is room again");
        Simulator::Run();
        NS_TEST_ASSERT_MSG_EQ(chunks.back().tasks[0].finishPs, 2000, "the last one");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Tasks that wait for one another.
 */
class UbStuckTasksTestCase : public UbTestCase
{
  public:
    UbStuckTasksTestCase()
        : UbTestCase("tasks that wait for one another end the run and are named")
    {
    }

  private:
    void DoRun() override
    {
        const auto fabric = Star(2);
        UbTestChunk chunk;
        chunk.AddTask(1, 0, 10);
        chunk.AddTask(1, 0, 10, {2});
        chunk.AddTask(2, 1, 10, {1});
        fabric->AddChunk(chunk.Arrays(100));
        // dependencies are numbers in the trace: 1 and 2 are of no loaded chunk, so nothing waits
        Simulator::Run();
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
        UbTestChunk stuck;
        stuck.AddTask(1, 0, 10);
        stuck.AddTask(1, 0, 10, {105});
        stuck.AddTask(2, 1, 10, {104});
        fabric->AddChunk(stuck.Arrays(103));
        Simulator::Run();
        const std::string left = fabric->Leftover();
        NS_TEST_ASSERT_MSG_NE(left.find("2 flows and tasks are not finished"),
                              std::string::npos,
                              left);
        NS_TEST_ASSERT_MSG_NE(left.find("the first task is 104"), std::string::npos, left);
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Suite of the task graph.
 */
class UbTaskGraphTestSuite : public TestSuite
{
  public:
    UbTaskGraphTestSuite()
        : TestSuite("ub-task-graph", Type::UNIT)
    {
        AddTestCase(new UbTaskOrderTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbSharedMemoryTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbClosedLoopTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbMessageOrderTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbOpenLoopTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbLateChunksTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbTooManyChunksTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbStuckTasksTestCase, TestCase::Duration::QUICK);
    }
};

static UbTaskGraphTestSuite g_ubTaskGraphTestSuite; ///< registers the suite
