// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-test-case.h"

#include "ns3/callback.h"
#include "ns3/uinteger.h"

#include <random>
#include <sstream>
#include <thread>

using namespace ns3;

namespace
{

/// Both ways to run a fabric.
const char* const IMPLEMENTATIONS[] = {"ns3::UbSimulatorImpl", "ns3::DefaultSimulatorImpl"};

/**
 * @param [in] ps Picoseconds.
 * @return The time.
 */
Time
Ps(int64_t ps)
{
    return PicoSeconds(ps);
}

} // namespace

/**
 * @ingroup ub-fabric-test
 * @brief A script of ordinary events, logged.
 */
class UbOrdinaryEventsTestCase : public UbTestCase
{
  public:
    UbOrdinaryEventsTestCase()
        : UbTestCase("ordinary events are ordered, cancelled, removed, expired and destroyed as "
                     "under DefaultSimulatorImpl")
    {
    }

  private:
    /**
     * Write a line with the time and the context.
     * @param [in] what What happened.
     */
    void Log(const std::string& what)
    {
        m_log << Simulator::Now().GetTimeStep() << " " << Simulator::GetContext() << " " << what
              << "\n";
    }

    /**
     * Write what the simulator says of all events.
     * @param [in] when Where in the script.
     */
    void LogState(const std::string& when)
    {
        std::ostringstream line;
        line << when << ":";
        for (const EventId& id : m_ids)
        {
            line << " " << Simulator::IsExpired(id) << id.IsPending() << "/"
                 << Simulator::GetDelayLeft(id).GetTimeStep();
        }
        line << " finished " << Simulator::IsFinished() << " count " << Simulator::GetEventCount();
        Log(line.str());
    }

    /// An event that schedules others.
    void Parent()
    {
        Log("parent");
        Simulator::ScheduleNow(&UbOrdinaryEventsTestCase::Log, this, "child, now");
        Simulator::Schedule(Ps(0), &UbOrdinaryEventsTestCase::Log, this, "child, no delay");
        Simulator::ScheduleWithContext(77,
                                       Ps(5),
                                       &UbOrdinaryEventsTestCase::Log,
                                       this,
                                       "child, other context");
        Simulator::Cancel(m_ids[2]);
        Simulator::Remove(m_ids[3]);
        Simulator::Remove(m_ids[0]); // it is the event at work
        LogState("in parent");
    }

    /// An event that changes the scheduler.
    void ChangeScheduler()
    {
        ObjectFactory factory;
        factory.SetTypeId("ns3::HeapScheduler");
        Simulator::SetScheduler(factory);
        Log("other scheduler");
    }

    /**
     * @param [in] implementation TypeId of the SimulatorImpl.
     * @return The log of the script.
     */
    std::string Play(const std::string& implementation)
    {
        using Self = UbOrdinaryEventsTestCase;
        UbStartSimulation(implementation);
        m_log.str("");
        m_ids.clear();
        m_ids.push_back(Simulator::Schedule(Ps(10), &Self::Parent, this));
        m_ids.push_back(Simulator::Schedule(Ps(10), &Self::Log, this, "after parent"));
        m_ids.push_back(Simulator::Schedule(Ps(10), &Self::Log, this, "cancelled"));
        m_ids.push_back(Simulator::Schedule(Ps(10), &Self::Log, this, "removed"));
        m_ids.push_back(Simulator::Schedule(Ps(3), &Self::Log, this, "earlier"));
        m_ids.push_back(Simulator::ScheduleNow(&Self::Log, this, "now"));
        m_ids.push_back(Simulator::ScheduleDestroy(&Self::Log, this, "destroy"));
        m_ids.push_back(Simulator::ScheduleDestroy(&Self::Log, this, "destroy, cancelled"));
        m_ids.push_back(Simulator::ScheduleDestroy(&Self::Log, this, "destroy, removed"));
        m_ids.push_back(Simulator::Schedule(Ps(10), &Self::LogState, this, "at 10"));
        m_ids.push_back(Simulator::Schedule(Ps(12), &Self::ChangeScheduler, this));
        m_ids.push_back(Simulator::Schedule(Ps(14), static_cast<void (*)()>(&Simulator::Stop)));
        m_ids.push_back(Simulator::Schedule(Ps(14), &Self::Log, this, "after the stop"));
        m_ids.push_back(Simulator::Stop(Ps(40)));
        m_ids.push_back(Simulator::Schedule(Ps(40), &Self::Log, this, "at the second stop"));
        m_ids.push_back(Simulator::Schedule(Ps(50), &Self::Log, this, "never"));
        Simulator::ScheduleWithContext(5, Ps(20), &Self::Log, this, "context 5");
        m_ids.emplace_back();
        LogState("before");
        Simulator::Cancel(m_ids[7]);
        Simulator::Remove(m_ids[8]);
        Simulator::Run();
        LogState("stopped");
        m_ids.push_back(Simulator::Schedule(Ps(1), &Self::Log, this, "while stopped"));
        Simulator::Run();
        LogState("stopped again");
        m_ids.push_back(Simulator::Schedule(Ps(1), &Self::Log, this, "a second time"));
        Simulator::Remove(m_ids[15]); // "never"
        Simulator::Run();
        LogState("at the end");
        m_log << Simulator::GetMaximumSimulationTime().GetTimeStep() << " "
              << Simulator::GetSystemId() << "\n";
        Simulator::Schedule(Ps(1000), &Self::Log, this, "dropped by Destroy");
        Simulator::Destroy();
        return m_log.str();
    }

    void DoRun() override
    {
        const std::string expected = Play("ns3::DefaultSimulatorImpl");
        const std::string ours = Play("ns3::UbSimulatorImpl");
        NS_TEST_ASSERT_MSG_NE(expected.find("child, other context"), std::string::npos, "played");
        NS_TEST_ASSERT_MSG_EQ(ours, expected, "the logs differ");
    }

    std::ostringstream m_log;   //!< what happened
    std::vector<EventId> m_ids; //!< the events of the script
};

/**
 * @ingroup ub-fabric-test
 * @brief Events that another thread asks for.
 */
class UbForeignThreadTestCase : public UbTestCase
{
  public:
    UbForeignThreadTestCase()
        : UbTestCase("events of another thread are taken in while the simulation runs")
    {
    }

  private:
    /// An event of the other thread.
    void Foreign()
    {
        ++m_nForeign;
        m_context = Simulator::GetContext();
        m_atPs = Simulator::Now().GetTimeStep();
    }

    /// Keep the simulation going until the other thread's event came, with an end.
    void Wait()
    {
        if (m_nForeign == 0 && ++m_nWaits < 20'000)
        {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
            Simulator::Schedule(Ps(1000), &UbForeignThreadTestCase::Wait, this);
        }
    }

    void DoRun() override
    {
        for (const auto* implementation : IMPLEMENTATIONS)
        {
            UbStartSimulation(implementation);
            m_nForeign = 0;
            m_nWaits = 0;
            Simulator::ScheduleNow(&UbForeignThreadTestCase::Wait, this);
            std::thread thread([this] {
                Simulator::ScheduleWithContext(9, Ps(10), &UbForeignThreadTestCase::Foreign, this);
            });
            Simulator::Run();
            thread.join();
            NS_TEST_ASSERT_MSG_EQ(m_nForeign, 1, implementation);
            NS_TEST_ASSERT_MSG_EQ(m_context, 9, implementation);
            NS_TEST_ASSERT_MSG_EQ(m_atPs % 1000, 10, "delay from when it is taken in");
        }
    }

    uint32_t m_nForeign{0}; //!< events of the other thread
    uint32_t m_nWaits{0};   //!< events of this one
    uint32_t m_context{0};  //!< context of the other thread's event
    int64_t m_atPs{0};      //!< its time
};

/**
 * @ingroup ub-fabric-test
 * @brief Time in the callbacks of trace sources.
 */
class UbTraceTimeTestCase : public UbTestCase
{
  public:
    /// @param [in] implementation TypeId of the SimulatorImpl.
    explicit UbTraceTimeTestCase(const std::string& implementation)
        : UbTestCase("Now() in each trace callback is the time of the event under " +
                     implementation),
          m_implementation(implementation)
    {
    }

  private:
    /**
     * A packet leaves.
     * @param [in] link Its link.
     * @param [in] flow Its flow.
     * @param [in] bytes Its bytes on the wire.
     */
    void Sent(uint32_t link, uint32_t flow, uint32_t bytes)
    {
        NS_TEST_EXPECT_MSG_EQ(bytes, 4096 + 64, "bytes on the wire");
        m_seen.emplace_back("sent " + std::to_string(link) + " " + std::to_string(flow),
                            Simulator::Now().GetTimeStep());
    }

    /**
     * A packet arrives.
     * @param [in] link Its link.
     * @param [in] flow Its flow.
     * @param [in] bytes Its bytes of the message.
     */
    void Delivered(uint32_t link, uint32_t flow, uint32_t bytes)
    {
        NS_TEST_EXPECT_MSG_EQ(bytes, 4096, "bytes of the message");
        m_seen.emplace_back("delivered " + std::to_string(link) + " " + std::to_string(flow),
                            Simulator::Now().GetTimeStep());
    }

    /**
     * A link lacks credit.
     * @param [in] link The link.
     */
    void Stalled(uint32_t link)
    {
        m_seen.emplace_back("stalled " + std::to_string(link), Simulator::Now().GetTimeStep());
    }

    /**
     * A flow is seen.
     * @param [in] src Its source.
     * @param [in] dst Its destination.
     * @param [in] bytes Its bytes.
     * @param [in] fct Its completion time.
     */
    void Finished(uint32_t src, uint32_t dst, uint64_t bytes, Time fct)
    {
        std::ostringstream text;
        text << "finished " << src << " " << dst << " " << bytes << " " << fct.GetTimeStep();
        m_seen.emplace_back(text.str(), Simulator::Now().GetTimeStep());
    }

    void DoRun() override
    {
        UbStartSimulation(m_implementation);
        UbTestChain chain;
        chain.bufferBytes = 4096 + 64; // room for one packet: the second waits for its credit
        chain.endpoint.receiveLatency = NanoSeconds(700); // a window would cover it all
        UbFabricHelper helper;
        helper.SetFabricAttribute("UbTransport", UbTestPosted(64));
        chain.Build(helper);
        const auto fabric = helper.Build();
        using Self = UbTraceTimeTestCase;
        fabric->TraceConnectWithoutContext("PacketSent", MakeCallback(&Self::Sent, this));
        fabric->TraceConnectWithoutContext("PacketDelivered", MakeCallback(&Self::Delivered, this));
        fabric->TraceConnectWithoutContext("CreditStall", MakeCallback(&Self::Stalled, this));
        fabric->TraceConnectWithoutContext("FlowFinished", MakeCallback(&Self::Finished, this));
        UbTestChunk chunk;
        constexpr int64_t start = 5'000;
        chunk.AddFlow(chain.sources[0], chain.destinations[0], 2, 4096, start);
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();

        const int64_t serialise = UbTestWirePs(4096 + 64, chain.rateBytesPerS);
        const int64_t hop = chain.delayPs + chain.forwardPs;
        const int64_t round = serialise + chain.delayPs + hop;
        const int64_t end = start + round + hop + serialise + chain.delayPs;
        std::ostringstream finished;
        finished << "finished " << chain.sources[0] << " " << chain.destinations[0] << " 8192 "
                 << end + 700'000 - start;
        const std::vector<std::pair<std::string, int64_t>> expected{
            {"sent 0 0", start},
            {"stalled 0", start + serialise},
            {"sent 2 0", start + hop},
            {"delivered 2 0", start + hop + serialise + chain.delayPs},
            {"sent 0 0", start + round},
            {"sent 2 0", start + round + hop},
            {"delivered 2 0", end},
            {finished.str(), end + 700'000},
        };
        auto sorted = expected; // the credit is back at the very time of the first delivery
        std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
            return a.second < b.second;
        });
        NS_TEST_ASSERT_MSG_EQ(m_seen.size(), sorted.size(), "callbacks");
        for (uint32_t i = 0; i < sorted.size(); ++i)
        {
            NS_TEST_ASSERT_MSG_EQ(m_seen[i].second, sorted[i].second, "time of callback " << i);
        }
        std::sort(m_seen.begin(), m_seen.end());
        std::sort(sorted.begin(), sorted.end());
        for (uint32_t i = 0; i < sorted.size(); ++i)
        {
            NS_TEST_ASSERT_MSG_EQ(m_seen[i].first, sorted[i].first, "callback");
            NS_TEST_ASSERT_MSG_EQ(m_seen[i].second,
                                  sorted[i].second,
                                  "time of " << sorted[i].first);
        }
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }

    std::string m_implementation;                        //!< TypeId of the SimulatorImpl
    std::vector<std::pair<std::string, int64_t>> m_seen; //!< callbacks and their times
};

/**
 * @ingroup ub-fabric-test
 * @brief The same fabric under both implementations, watched or not.
 */
class UbSameTimesTestCase : public UbTestCase
{
  public:
    /// @param [in] nLanes Virtual lanes.
    explicit UbSameTimesTestCase(uint32_t nLanes)
        : UbTestCase("times are the same in windows, step by step, watched, watched for a while, "
                     "and among ordinary events, " +
                     std::to_string(nLanes) + " lanes"),
          m_nLanes(nLanes)
    {
    }

  private:
    /// How to run.
    enum Manner : uint32_t
    {
        PLAIN = 0,
        WATCHED = 1,         //!< trace sources have listeners
        WATCHED_A_WHILE = 2, //!< only in the middle
        AMONG_EVENTS = 4,    //!< ordinary events cut the windows
    };

    /// A packet left or arrived.
    void Watch(uint32_t /* link */, uint32_t /* flow */, uint32_t /* bytes */)
    {
        ++m_nTraced;
    }

    /**
     * Begin or end to watch.
     * @param [in] isOn Whether to begin.
     */
    void Switch(bool isOn)
    {
        const auto callback = MakeCallback(&UbSameTimesTestCase::Watch, this);
        for (const auto* source : {"PacketSent", "PacketDelivered"})
        {
            if (isOn)
            {
                m_fabric->TraceConnectWithoutContext(source, callback);
            }
            else
            {
                m_fabric->TraceDisconnectWithoutContext(source, callback);
            }
        }
    }

    /// An ordinary event looks at the fabric.
    void Look()
    {
        m_looks.push_back(Simulator::Now().GetTimeStep());
        m_looks.push_back(static_cast<int64_t>(m_fabric->GetPacketHops()));
        if (m_looks.size() < 2000)
        {
            Simulator::Schedule(Ps(17'333), &UbSameTimesTestCase::Look, this);
        }
    }

    /**
     * Run random traffic.
     * @param [in] implementation TypeId of the SimulatorImpl.
     * @param [in] manner How to run.
     * @return All times, and those of what ordinary events saw.
     */
    std::vector<int64_t> Times(const std::string& implementation, uint32_t manner)
    {
        UbStartSimulation(implementation);
        UbFabricHelper helper;
        helper.SetFabricAttribute("PayloadBytes", UintegerValue(1024));
        helper.SetFabricAttribute("UbTransport", UbTestPosted(64));
        helper.SetFabricAttribute("PathPolicy", StringValue("ns3::UbPathRandom"));
        helper.SetFabricAttribute("NumVirtualLanes", UintegerValue(m_nLanes));
        UbTestChain chain;
        chain.nSwitches = 3;
        chain.nSources = 6;
        chain.nDestinations = 6;
        chain.bufferBytes = 3000;
        chain.lastRateBytesPerS = 9'000'000'000;
        chain.endpoint.issueEngines = 2;
        chain.endpoint.issueCost = Ps(3000);
        chain.endpoint.receiveLatency = NanoSeconds(300);
        chain.Build(helper);
        m_fabric = helper.Build();
        m_nTraced = 0;
        m_looks.clear();
        if ((manner & WATCHED) != 0)
        {
            Switch(true);
        }
        if ((manner & WATCHED_A_WHILE) != 0)
        {
            Simulator::Schedule(Ps(1'234'567), &UbSameTimesTestCase::Switch, this, true);
            Simulator::Schedule(Ps(3'456'789), &UbSameTimesTestCase::Switch, this, false);
        }
        if ((manner & AMONG_EVENTS) != 0)
        {
            Look();
        }
        std::mt19937 random(11);
        UbTestChunk chunk;
        for (uint32_t i = 0; i < 200; ++i)
        {
            const auto& from = random() % 2 == 0 ? chain.sources : chain.destinations;
            const auto& to = random() % 4 == 0 ? chain.sources : chain.destinations;
            chunk.AddFlow(from[random() % 6],
                          to[random() % 3 % 6],
                          1 + random() % 3,
                          1 + random() % 5000,
                          random() % 4'000'000,
                          static_cast<uint8_t>(random() % m_nLanes));
        }
        m_fabric->AddChunk(chunk.Arrays());
        Simulator::Run();
        NS_TEST_EXPECT_MSG_EQ(m_fabric->Leftover(), "", "left over");
        NS_TEST_EXPECT_MSG_EQ((m_nTraced > 0),
                              ((manner & (WATCHED | WATCHED_A_WHILE)) != 0),
                              "callbacks");
        std::vector<int64_t> times;
        for (const UbFlowRecord& flow : chunk.flows)
        {
            times.insert(times.end(),
                         {flow.startPs, flow.firstBytePs, flow.finishPs, flow.queueingPs});
        }
        std::vector<UbLinkStats> stats;
        m_fabric->ReadLinkStats(stats);
        for (const UbLinkStats& link : stats)
        {
            times.insert(times.end(),
                         {static_cast<int64_t>(link.packets),
                          static_cast<int64_t>(link.maxQueueBytes),
                          link.noCreditPs});
        }
        m_fabric->Dispose();
        m_fabric = nullptr;
        return times;
    }

    void DoRun() override
    {
        const auto plain = Times(IMPLEMENTATIONS[0], PLAIN);
        std::vector<int64_t> looks;
        for (const auto* implementation : IMPLEMENTATIONS)
        {
            for (const uint32_t manner : {uint32_t{PLAIN},
                                          uint32_t{WATCHED},
                                          uint32_t{WATCHED_A_WHILE},
                                          uint32_t{AMONG_EVENTS},
                                          AMONG_EVENTS | WATCHED})
            {
                const auto times = Times(implementation, manner);
                for (uint32_t i = 0; i < plain.size(); ++i)
                {
                    NS_TEST_ASSERT_MSG_EQ(times[i],
                                          plain[i],
                                          "result " << i << " of " << plain.size() << ": "
                                                    << implementation << ", manner " << manner);
                }
                if (looks.empty())
                {
                    looks = m_looks;
                }
                if ((manner & AMONG_EVENTS) != 0)
                {
                    NS_TEST_ASSERT_MSG_EQ((m_looks == looks),
                                          true,
                                          "what ordinary events see: " << implementation
                                                                       << ", manner " << manner);
                }
            }
        }
        NS_TEST_ASSERT_MSG_EQ(looks.size(), 2000, "ordinary events");
    }

    uint32_t m_nLanes;            //!< virtual lanes
    Ptr<UbFabric> m_fabric;       //!< the fabric
    uint64_t m_nTraced{0};        //!< callbacks
    std::vector<int64_t> m_looks; //!< times and packet-hops that ordinary events saw
};

/**
 * @ingroup ub-fabric-test
 * @brief Ordinary events and the fabric share one clock.
 */
class UbSharedClockTestCase : public UbTestCase
{
  public:
    UbSharedClockTestCase()
        : UbTestCase("an ordinary event finds the fabric at its own time and may load flows there")
    {
    }

  private:
    /// Load the second chunk.
    void Load()
    {
        m_hops.push_back(m_fabric->GetPacketHops());
        m_fabric->AddChunk(m_second.Arrays());
    }

    /// Count packet-hops.
    void Count()
    {
        m_hops.push_back(m_fabric->GetPacketHops());
    }

    void DoRun() override
    {
        for (const auto* implementation : IMPLEMENTATIONS)
        {
            UbStartSimulation(implementation);
            UbTestChain chain;
            chain.nSwitches = 3;
            chain.endpoint.receiveLatency = MicroSeconds(50); // windows longer than the run
            UbFabricHelper helper;
            helper.SetFabricAttribute("UbTransport", UbTestPosted(64));
            chain.Build(helper);
            m_fabric = helper.Build();
            m_hops.clear();
            m_second = {};
            UbTestChunk chunk;
            chunk.AddFlow(chain.sources[0], chain.destinations[0], 1, 64);
            m_second.AddFlow(chain.destinations[0], chain.sources[0], 1, 64, 0);
            m_fabric->AddChunk(chunk.Arrays());
            const int64_t hop = chain.delayPs + chain.forwardPs;
            Simulator::Schedule(Ps(1), &UbSharedClockTestCase::Count, this);
            Simulator::Schedule(Ps(hop - 1), &UbSharedClockTestCase::Count, this);
            Simulator::Schedule(Ps(hop + 1), &UbSharedClockTestCase::Load, this);
            Simulator::Schedule(Ps(hop + 2), &UbSharedClockTestCase::Count, this);
            Simulator::Schedule(Ps(2 * hop + 2), &UbSharedClockTestCase::Count, this);
            Simulator::Run();
            const std::vector<uint64_t> expected{1, 1, 2, 3, 5};
            for (uint32_t i = 0; i < expected.size(); ++i)
            {
                NS_TEST_ASSERT_MSG_EQ(m_hops[i], expected[i], implementation << ", count " << i);
            }
            NS_TEST_ASSERT_MSG_EQ(m_second.flows[0].startPs, hop + 1, "handed over there and then");
            NS_TEST_ASSERT_MSG_EQ(m_second.flows[0].finishPs - m_second.flows[0].startPs,
                                  chunk.flows[0].finishPs,
                                  "and as fast as the first");
            NS_TEST_ASSERT_MSG_EQ(m_fabric->Leftover(), "", "left over");
            m_fabric->Dispose();
            m_fabric = nullptr;
        }
    }

    Ptr<UbFabric> m_fabric;       //!< the fabric
    UbTestChunk m_second;         //!< what the ordinary event loads
    std::vector<uint64_t> m_hops; //!< packet-hops that ordinary events saw
};

/**
 * @ingroup ub-fabric-test
 * @brief Suite of the simulator implementation.
 */
class UbSimulatorImplTestSuite : public TestSuite
{
  public:
    UbSimulatorImplTestSuite()
        : TestSuite("ub-simulator-impl", Type::UNIT)
    {
        AddTestCase(new UbOrdinaryEventsTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbForeignThreadTestCase, TestCase::Duration::QUICK);
        for (const auto* implementation : IMPLEMENTATIONS)
        {
            AddTestCase(new UbTraceTimeTestCase(implementation), TestCase::Duration::QUICK);
        }
        for (const uint32_t nLanes : {1U, 2U, 5U})
        {
            AddTestCase(new UbSameTimesTestCase(nLanes), TestCase::Duration::QUICK);
        }
        AddTestCase(new UbSharedClockTestCase, TestCase::Duration::QUICK);
    }
};

static UbSimulatorImplTestSuite g_ubSimulatorImplTestSuite; ///< registers the suite
