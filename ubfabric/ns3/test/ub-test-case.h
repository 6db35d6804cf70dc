// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_TEST_CASE_H
#define UB_TEST_CASE_H

#include "ns3/global-value.h"
#include "ns3/simulator.h"
#include "ns3/string.h"
#include "ns3/test.h"
#include "ns3/ub-fabric-helper.h"
#include "ns3/ub-fabric.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace ns3
{

/**
 * @ingroup ub-fabric-test
 * @brief Set picoseconds and choose a SimulatorImpl for the simulation to come.
 *
 * ns-3 allows another resolution only before the first simulation of a process; the first case
 * that runs sets it for all.
 *
 * @param [in] implementation TypeId of the SimulatorImpl.
 */
inline void
UbStartSimulation(const std::string& implementation = "ns3::UbSimulatorImpl")
{
    if (Time::GetResolution() != Time::PS)
    {
        Time::SetResolution(Time::PS);
    }
    Simulator::Destroy();
    GlobalValue::Bind("SimulatorImplementationType", StringValue(implementation));
}

/// End the simulation and let the next one have ns-3's own SimulatorImpl.
inline void
UbEndSimulation()
{
    Simulator::Destroy();
    GlobalValue::Bind("SimulatorImplementationType", StringValue("ns3::DefaultSimulatorImpl"));
}

/**
 * @ingroup ub-fabric-test
 * @brief A case that runs under UbSimulatorImpl in picoseconds.
 */
class UbTestCase : public TestCase
{
  public:
    /// @param [in] name What must hold.
    explicit UbTestCase(const std::string& name)
        : TestCase(name)
    {
    }

  protected:
    void DoSetup() override
    {
        UbStartSimulation();
    }

    void DoTeardown() override
    {
        UbEndSimulation();
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Time to put bytes on a wire, computed in another way than the engine does.
 * @param [in] bytes The bytes.
 * @param [in] bytesPerS The rate.
 * @return Picoseconds, rounded to the nearest.
 */
inline int64_t
UbTestWirePs(uint64_t bytes, uint64_t bytesPerS)
{
    return std::llround(1e12L * static_cast<long double>(bytes) /
                        static_cast<long double>(bytesPerS));
}

/**
 * @ingroup ub-fabric-test
 * @param [in] bytesPerS Bytes a second.
 * @return The rate.
 */
inline DataRate
UbTestRate(uint64_t bytesPerS)
{
    return DataRate(8 * bytesPerS);
}

/**
 * @ingroup ub-fabric-test
 * @param [in] headerBytes Bytes of headers of a packet.
 * @return The value of a transport attribute of UbFabric: writes that nobody answers.
 */
inline StringValue
UbTestPosted(uint32_t headerBytes)
{
    return StringValue("ns3::UbPosted[HeaderBytes=" + std::to_string(headerBytes) + "]");
}

/**
 * @ingroup ub-fabric-test
 * @brief Flows and tasks with the arrays that UbFabric::AddChunk wants.
 *
 * Keep the object until the simulation is over: the engine works on its arrays.
 */
class UbTestChunk
{
  public:
    /**
     * Add a flow that starts at a time of its own.
     * @param [in] src Source endpoint.
     * @param [in] dst Destination endpoint.
     * @param [in] messages Number of messages.
     * @param [in] messageBytes Bytes of each.
     * @param [in] startPs Start.
     * @param [in] lane Virtual lane.
     * @param [in] network Network.
     * @return Number of the flow.
     */
    uint32_t AddFlow(uint32_t src,
                     uint32_t dst,
                     uint32_t messages,
                     uint32_t messageBytes,
                     int64_t startPs = 0,
                     uint8_t lane = 0,
                     uint8_t network = 0)
    {
        UbFlowRecord flow{};
        flow.src = src;
        flow.dst = dst;
        flow.messages = messages;
        flow.messageBytes = messageBytes;
        flow.sendTask = UB_NONE;
        flow.waitTask = UB_NONE;
        flow.startPs = startPs;
        flow.lane = lane;
        flow.network = network;
        flows.push_back(flow);
        return static_cast<uint32_t>(flows.size() - 1);
    }

    /**
     * Add a task.
     * @param [in] endpoint Endpoint of its rank.
     * @param [in] stream Its stream.
     * @param [in] durationPs Its duration.
     * @param [in] deps Numbers in the trace of the tasks that it depends on.
     * @return Number of the task within the chunk.
     */
    uint32_t AddTask(uint32_t endpoint,
                     uint32_t stream,
                     int64_t durationPs,
                     const std::vector<uint64_t>& deps = {})
    {
        UbTaskRecord task{};
        task.endpoint = endpoint;
        task.stream = stream;
        task.durationPs = durationPs;
        tasks.push_back(task);
        m_deps.push_back(deps);
        return static_cast<uint32_t>(tasks.size() - 1);
    }

    /**
     * Add a flow that a task sends, or waits for, or both.
     * @param [in] sendTask Number of the sending task within the chunk.
     * @param [in] waitTask Number of the task that waits, UB_NONE for nobody.
     * @param [in] dst Destination endpoint; the source is the task's.
     * @param [in] messages Number of messages.
     * @param [in] messageBytes Bytes of each.
     * @return Number of the flow.
     */
    uint32_t AddFlowOfTask(uint32_t sendTask,
                           uint32_t waitTask,
                           uint32_t dst,
                           uint32_t messages,
                           uint32_t messageBytes)
    {
        const uint32_t flow = AddFlow(tasks[sendTask].endpoint, dst, messages, messageBytes, -1);
        flows[flow].sendTask = sendTask;
        flows[flow].waitTask = waitTask;
        return flow;
    }

    /**
     * Make the arrays; afterwards nothing may be added.
     * @param [in] firstTask Number of the first task in the trace.
     * @param [in] isLast Whether no chunk follows.
     * @return The arrays.
     */
    UbChunkArrays Arrays(uint64_t firstTask = 0, bool isLast = true)
    {
        m_sendOrder.clear();
        m_openOrder.clear();
        m_depStart.assign(1, 0);
        m_depList.clear();
        for (uint32_t t = 0; t < tasks.size(); ++t)
        {
            tasks[t].sendFirst = static_cast<uint32_t>(m_sendOrder.size());
            tasks[t].sendCount = 0;
            tasks[t].flowsLeft = 0;
            for (uint32_t f = 0; f < flows.size(); ++f)
            {
                if (flows[f].sendTask == t)
                {
                    m_sendOrder.push_back(f);
                    ++tasks[t].sendCount;
                }
                tasks[t].flowsLeft += flows[f].waitTask == t ? 1 : 0;
            }
            m_depList.insert(m_depList.end(), m_deps[t].begin(), m_deps[t].end());
            m_depStart.push_back(m_depList.size());
        }
        for (uint32_t f = 0; f < flows.size(); ++f)
        {
            if (flows[f].sendTask == UB_NONE)
            {
                m_openOrder.push_back(f);
            }
        }
        std::stable_sort(m_openOrder.begin(), m_openOrder.end(), [this](uint32_t a, uint32_t b) {
            return flows[a].startPs < flows[b].startPs;
        });
        UbChunkArrays arrays;
        arrays.flows = flows.data();
        arrays.nFlows = static_cast<uint32_t>(flows.size());
        arrays.tasks = tasks.data();
        arrays.nTasks = static_cast<uint32_t>(tasks.size());
        arrays.firstTask = firstTask;
        arrays.sendOrder = m_sendOrder.data();
        arrays.depStart = m_depStart.data();
        arrays.deps = m_depList.data();
        arrays.openOrder = m_openOrder.data();
        arrays.nOpen = static_cast<uint32_t>(m_openOrder.size());
        arrays.isLast = isLast;
        return arrays;
    }

    std::vector<UbFlowRecord> flows; //!< the flows
    std::vector<UbTaskRecord> tasks; //!< the tasks

  private:
    std::vector<std::vector<uint64_t>> m_deps; //!< by task
    std::vector<uint32_t> m_sendOrder;         //!< flows by sending task
    std::vector<uint32_t> m_openOrder;         //!< open-loop flows by start
    std::vector<uint64_t> m_depStart;          //!< start of a task's entries in m_depList
    std::vector<uint64_t> m_depList;           //!< all dependencies
};

/**
 * @ingroup ub-fabric-test
 * @brief A chain of switches between endpoints, all cables alike unless said otherwise.
 */
struct UbTestChain
{
    uint32_t nSwitches{1};                  //!< switches in a row
    uint32_t nSources{1};                   //!< endpoints at the first switch
    uint32_t nDestinations{1};              //!< endpoints at the last switch
    uint64_t rateBytesPerS{28'000'000'000}; //!< rate of all cables but those below
    uint64_t lastRateBytesPerS{0};          //!< rate of the first destination's cable, 0: the same
    int64_t delayPs{10'000};                //!< delay of each cable
    int64_t forwardPs{200'000};             //!< of each switch
    uint32_t bufferBytes{65536};            //!< of each switch
    UbEndpointParameters endpoint;          //!< of each endpoint

    std::vector<uint32_t> sources;      //!< endpoints, after Build()
    std::vector<uint32_t> switches;     //!< switches, after Build()
    std::vector<uint32_t> destinations; //!< endpoints, after Build()

    /**
     * Links are numbered as the cables are laid: the cables of the sources, those between
     * switches, those of the destinations; cable c has links 2c towards the destinations and
     * 2c + 1 back.
     * @param [in,out] helper Where to build it.
     */
    void Build(UbFabricHelper& helper)
    {
        const auto rate = UbTestRate(rateBytesPerS);
        const auto delay = PicoSeconds(delayPs);
        for (uint32_t i = 0; i < nSwitches; ++i)
        {
            switches.push_back(helper.AddSwitch(PicoSeconds(forwardPs), bufferBytes));
        }
        for (uint32_t i = 0; i < nSources; ++i)
        {
            sources.push_back(helper.AddEndpoint(endpoint));
            helper.Connect(sources.back(), switches.front(), 0, rate, delay);
        }
        for (uint32_t i = 0; i + 1 < nSwitches; ++i)
        {
            helper.Connect(switches[i], switches[i + 1], 0, rate, delay);
        }
        for (uint32_t i = 0; i < nDestinations; ++i)
        {
            destinations.push_back(helper.AddEndpoint(endpoint));
            const bool isFirst = i == 0 && lastRateBytesPerS != 0;
            helper.Connect(switches.back(),
                           destinations.back(),
                           0,
                           isFirst ? UbTestRate(lastRateBytesPerS) : rate,
                           delay);
        }
    }

    /// @return Number of the link from the last switch to the first destination.
    uint32_t LastLink() const
    {
        return 2 * (nSources + nSwitches - 1);
    }

    /// @return Delays and forwarding latencies of the way of a packet.
    int64_t PathPs() const
    {
        return (nSwitches + 1) * delayPs + nSwitches * forwardPs;
    }
};

} // namespace ns3

#endif // UB_TEST_CASE_H
